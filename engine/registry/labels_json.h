// Labels as one column: a JSON object of strings.
#ifndef FORKD_ENGINE_REGISTRY_LABELS_JSON_H_
#define FORKD_ENGINE_REGISTRY_LABELS_JSON_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/registry/rows.h"

namespace forkd::engine {

// INVALID_ARGUMENT INVALID_FIELD if a label is not UTF-8.
absl::StatusOr<std::string> LabelsToJson(const Labels& labels);
// INTERNAL REGISTRY if it is anything else.
absl::StatusOr<Labels> LabelsFromJson(absl::string_view json);

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_REGISTRY_LABELS_JSON_H_

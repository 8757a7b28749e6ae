// The `label` filter of list calls: "key=value", or "key" for any value; all must hold.
#ifndef FORKD_SERVER_LABEL_FILTER_H_
#define FORKD_SERVER_LABEL_FILTER_H_

#include <string>
#include <utility>

#include "engine/registry/rows.h"

namespace forkd::server {

// `filters`: a repeated string field.
template <typename Filters>
bool MatchesLabels(const engine::Labels& labels, const Filters& filters) {
  for (const std::string& filter : filters) {
    const auto equals = filter.find('=');
    const auto it = labels.find(filter.substr(0, equals));
    if (it == labels.end()) { return false; }
    if (equals != std::string::npos && it->second != filter.substr(equals + 1)) { return false; }
  }
  return true;
}

}  // namespace forkd::server

#endif  // FORKD_SERVER_LABEL_FILTER_H_

// Whether bytes are UTF-8, as Unicode 15, table 3-7 has it: no overlong forms, no surrogates, nothing beyond U+10FFFF.
#ifndef FORKD_BASE_UTF8_H_
#define FORKD_BASE_UTF8_H_

#include "absl/strings/string_view.h"

namespace forkd {

bool IsUtf8(absl::string_view bytes);

}  // namespace forkd

#endif  // FORKD_BASE_UTF8_H_

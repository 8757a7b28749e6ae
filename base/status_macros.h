// Early return on error, for functions (FORKD_…) and for coroutines (FORKD_CO_…).
#ifndef FORKD_BASE_STATUS_MACROS_H_
#define FORKD_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define FORKD_INTERNAL_CAT_(a, b) a##b
#define FORKD_INTERNAL_CAT(a, b) FORKD_INTERNAL_CAT_(a, b)

#define FORKD_RETURN_IF_ERROR(expr)                                        \
  do {                                                                     \
    if (absl::Status forkd_status_ = (expr); !forkd_status_.ok()) {        \
      return forkd_status_;                                                \
    }                                                                      \
  } while (false)

#define FORKD_CO_RETURN_IF_ERROR(expr)                                     \
  do {                                                                     \
    absl::Status forkd_status_ = (expr);                                   \
    if (!forkd_status_.ok()) {                                             \
      co_return forkd_status_;                                             \
    }                                                                      \
  } while (false)

#define FORKD_ASSIGN_OR_RETURN(lhs, expr) \
  FORKD_INTERNAL_ASSIGN(FORKD_INTERNAL_CAT(forkd_or_, __LINE__), lhs, expr, return)

#define FORKD_CO_ASSIGN_OR_RETURN(lhs, expr) \
  FORKD_INTERNAL_ASSIGN(FORKD_INTERNAL_CAT(forkd_or_, __LINE__), lhs, expr, co_return)

#define FORKD_INTERNAL_ASSIGN(tmp, lhs, expr, leave) \
  auto tmp = (expr);                                 \
  if (!tmp.ok()) {                                   \
    leave std::move(tmp).status();                   \
  }                                                  \
  lhs = *std::move(tmp)

#endif  // FORKD_BASE_STATUS_MACROS_H_

// forkd's version, one for every program of a build.
#ifndef FORKD_BASE_VERSION_H_
#define FORKD_BASE_VERSION_H_

namespace forkd {

inline constexpr char kVersion[] = "0.1.0";
// The version of the REST and gRPC contract, as in its paths and packages.
inline constexpr char kApiVersion[] = "v1";

}  // namespace forkd

#endif  // FORKD_BASE_VERSION_H_

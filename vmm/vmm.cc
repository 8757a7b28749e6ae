#include "vmm/vmm.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"

namespace forkd::vmm {
namespace {

// The one list of the record's fields.
constexpr std::pair<absl::string_view, std::string MachineRecord::*> kFields[] = {
    {"vmm", &MachineRecord::vmm},         {"vmm_version", &MachineRecord::vmm_version}, {"machine", &MachineRecord::machine},
    {"cpu_model", &MachineRecord::cpu_model}, {"accelerator", &MachineRecord::accelerator}, {"devices", &MachineRecord::devices},
    {"shape", &MachineRecord::shape},     {"host_cpu", &MachineRecord::host_cpu},
};

}  // namespace

absl::string_view AcceleratorName(Accelerator accelerator) { return accelerator == Accelerator::kKvm ? "kvm" : "tcg"; }

std::map<std::string, std::string> MachineRecord::ToMap() const {
  std::map<std::string, std::string> map;
  for (const auto& [name, member] : kFields) { map.emplace(std::string(name), this->*member); }
  return map;
}

absl::StatusOr<MachineRecord> MachineRecord::FromMap(const std::map<std::string, std::string>& map) {
  MachineRecord record;
  for (const auto& [name, member] : kFields) {
    const auto entry = map.find(std::string(name));
    if (entry == map.end()) { return InvalidField(absl::StrCat("machine.", name), "is missing"); }
    record.*member = entry->second;
  }
  if (map.size() == std::size(kFields)) { return record; }
  for (const auto& [key, value] : map) {
    bool known = false;
    for (const auto& field : kFields) { known = known || field.first == key; }
    if (!known) { return InvalidField(absl::StrCat("machine.", key), "is not a field of this version of forkd"); }
  }
  return record;
}

std::string MachineDifference(const MachineRecord& snapshot, const MachineRecord& here) {
  std::vector<std::string> differences;
  for (const auto& [name, member] : kFields) {
    if (snapshot.*member == here.*member) { continue; }
    differences.push_back(absl::StrCat(name, " is ", Quoted(here.*member), ", the snapshot was made with ", Quoted(snapshot.*member)));
  }
  return absl::StrJoin(differences, "; ");
}

}  // namespace forkd::vmm

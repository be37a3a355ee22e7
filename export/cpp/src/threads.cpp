// OpenVINO looks at the visible cores, not at the quota of a container: more threads than that are stopped for most of
// each period of the scheduler.
#include <sched.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "network.hpp"

namespace fs = std::filesystem;

namespace {

std::string first_line(const fs::path &path) {
    std::string line;
    std::ifstream file(path);
    std::getline(file, line);
    return line;
}

// Two hyper-threads of one core share its arithmetic units and count once.
int physical_cores() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return static_cast<int>(std::thread::hardware_concurrency());
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        const auto name = "cpu" + std::to_string(cpu);
        const auto siblings = first_line("/sys/devices/system/cpu/" + name + "/topology/thread_siblings_list");
        cores.insert(siblings.empty() ? name : siblings);
    }
    return static_cast<int>(cores.size());
}

bool number(const std::string &text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
}

// CPUs that one group allows: cpu.max (cgroup v2), else the two files of v1; infinite without a limit.
double group_limit(const fs::path &group) {
    std::string quota, period;
    std::istringstream(first_line(group / "cpu.max")) >> quota >> period;
    if (quota.empty()) {
        quota = first_line(group / "cpu.cfs_quota_us");
        period = first_line(group / "cpu.cfs_period_us");
    }
    if (!number(quota) || !number(period) || std::stod(period) == 0) return INFINITY;  // "max" (v2), -1 (v1)
    return std::stod(quota) / std::stod(period);
}

// Of the process's groups and those above them. In a container the path may be the host's: then only the root is there.
double cpu_quota() {
    const fs::path root = "/sys/fs/cgroup";
    std::ifstream groups("/proc/self/cgroup");
    double least = INFINITY;
    for (std::string line; std::getline(groups, line);) {  // number:controllers:path
        const auto first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const auto controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        std::vector<fs::path> mounts;
        if (controllers == ",,") mounts = {root};
        if (controllers.find(",cpu,") != std::string::npos)
            mounts = {root / controllers.substr(1, controllers.size() - 2), root / "cpu"};
        for (const auto &mount : mounts) {
            fs::path group = mount;
            least = std::min(least, group_limit(group));
            for (const auto &part : fs::path(line.substr(second + 1)).relative_path())
                least = std::min(least, group_limit(group /= part));
        }
    }
    return least;
}

}  // namespace

int default_threads() {
    return std::max(1, static_cast<int>(std::min<double>(physical_cores(), cpu_quota())));
}

// A compiled network on the CPU. OpenVINO stays behind this file.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "edgeseg.h"

class Network {
  public:
    // Load an IR and run it twice. A recurrent one also takes states h0, ..., each with an output h0_next, ..., which
    // stay inside. Throws Refused (EDGESEG_BUNDLE).
    Network(const std::filesystem::path &xml, int threads, bool recurrent);
    Network(Network &&) noexcept;
    ~Network();

    const std::vector<size_t> &input_shape() const;  // [1, C, H, W]
    int32_t input_type() const;                      // edgeseg_type
    const std::vector<size_t> &output_shape() const;
    bool output_labels() const;  // uint8 labels [1, H, W], or else float32 logits [1, K, H, W]

    void *input();      // where `run` will read
    const void *run();  // what came out, valid until the next call
    void reset();       // a new clip

  private:
    struct Impl;
    std::unique_ptr<Impl> impl;
};

std::string runtime_version();

// As edgeseg/runtime/threads.py: physical cores that affinity leaves, at most the whole CPUs of the cgroup quota.
int default_threads();

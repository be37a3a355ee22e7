// The frames of a clip through a recurrent network; the rules are those of edgeseg/runtime/stream.py.
#pragma once

#include <limits>
#include <optional>

#include "bundle.hpp"
#include "network.hpp"

class Stream {
  public:
    // frame_time: seconds between frames, 0 when nobody knows. Throws Refused (EDGESEG_BUNDLE): a normalisation that
    // needs the clip, or a network that is not for the manifest's grid.
    Stream(const Manifest &manifest, Network network, double frame_time);

    // The next frame, taken at `time` -> its labels, which are 0 already, and words for anything but EDGESEG_OK.
    edgeseg_status push(const edgeseg_frame &frame, std::optional<double> time, uint8_t *labels, std::string &words);
    void reset();
    uint64_t remembered() const { return known; }  // how many frames before the last one the network knew of

  private:
    void forget();
    std::string wrong(const edgeseg_frame &frame) const;
    std::string passed(std::optional<double> now);
    void segment(uint8_t *labels);

    const Manifest &manifest;
    Network network;
    const double frame_time;
    std::vector<float> raw, last;        // the frame, and the one before
    std::vector<uint8_t> last_labels;    // empty: nothing is remembered
    std::optional<double> before;        // time of the last frame
    double shortest = std::numeric_limits<double>::infinity();
    uint64_t known = 0, next_known = 0;
};

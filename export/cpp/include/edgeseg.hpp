// edgeseg.hpp: edgeseg.h for C++17, header only.
//
//     edgeseg::Segmenter scanner("cine.edgeseg");
//     std::vector<std::uint8_t> labels;
//     auto status = scanner.segment(edgeseg::frame(pixels, 256, 216, 1.40625, 1.40625), labels);
//     if (!status.ok()) log(status.text);  // what is in the pixels never throws
#ifndef EDGESEG_HPP
#define EDGESEG_HPP

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "edgeseg.h"

namespace edgeseg {

// A call that was refused: `code` is below 0.
struct Error : std::runtime_error {
    Error(edgeseg_status code, const std::string &text) : std::runtime_error(text), code(code) {}
    edgeseg_status code;
};

// What became of a frame. `remembered`: frames before it that a stream's network knew of.
struct Status {
    edgeseg_status code = EDGESEG_OK;
    std::string text;
    std::uint64_t remembered = 0;
    bool ok() const { return code == EDGESEG_OK; }
};

struct Options {
    std::string precision;  // as of edgeseg_options
    int threads = 0;
    double frame_time = 0;
};

// A frame of `pixels` [channels][rows][columns], which are not copied.
template <class Pixel>
edgeseg_frame frame(const Pixel *pixels, std::uint32_t rows, std::uint32_t columns, double row_mm, double column_mm,
                    std::uint32_t channels = 1) {
    constexpr std::int32_t type = std::is_same_v<Pixel, std::uint8_t>    ? EDGESEG_UINT8
                                  : std::is_same_v<Pixel, std::int16_t>  ? EDGESEG_INT16
                                  : std::is_same_v<Pixel, std::uint16_t> ? EDGESEG_UINT16
                                  : std::is_same_v<Pixel, float>         ? EDGESEG_FLOAT32
                                                                         : EDGESEG_ANY;
    static_assert(type != EDGESEG_ANY, "pixels are uint8_t, int16_t, uint16_t or float");
    return {pixels, sizeof(Pixel) * channels * rows * columns, type, channels, rows, columns, row_mm, column_mm};
}

// A bundle at work. Used by one thread at a time; moved, not copied.
class Segmenter {
  public:
    explicit Segmenter(const std::string &bundle, const Options &options = {}) {
        const edgeseg_options given{options.precision.empty() ? nullptr : options.precision.c_str(), options.threads,
                                    options.frame_time};
        edgeseg_handle *opened = nullptr;
        const auto code = edgeseg_open(EDGESEG_ABI, bundle.c_str(), &given, &opened);
        handle.reset(opened);
        check(code);
    }

    const edgeseg_info &info() const { return *edgeseg_get_info(handle.get()); }

    Status segment(const edgeseg_frame &frame, std::vector<std::uint8_t> &labels) {
        return judge(frame, labels, [&](std::uint64_t *) {
            return edgeseg_segment(handle.get(), &frame, labels.data(), labels.size());
        });
    }

    Status push(const edgeseg_frame &frame, std::vector<std::uint8_t> &labels, std::optional<double> time = {}) {
        return judge(frame, labels, [&](std::uint64_t *remembered) {
            return edgeseg_push(handle.get(), &frame, time ? &*time : nullptr, labels.data(), labels.size(),
                                remembered);
        });
    }

    void reset() { check(edgeseg_reset(handle.get())); }

  private:
    struct Close {
        void operator()(edgeseg_handle *opened) const { edgeseg_close(opened); }
    };
    std::unique_ptr<edgeseg_handle, Close> handle;

    edgeseg_status check(edgeseg_status code) const {
        if (code < 0) throw Error(code, edgeseg_last_error(handle.get()));
        return code;
    }

    template <class Call>
    Status judge(const edgeseg_frame &frame, std::vector<std::uint8_t> &labels, Call call) {
        labels.resize(std::size_t{frame.rows} * frame.columns);
        Status status;
        status.code = check(call(&status.remembered));
        status.text = edgeseg_last_error(handle.get());
        return status;
    }
};

}  // namespace edgeseg

#endif

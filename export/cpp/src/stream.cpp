#include "stream.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "frame.hpp"

namespace {

constexpr double GAP = 5;  // frame times without a frame after which the heart is elsewhere

std::string text(const char *format, double a, double b = 0) {
    char line[120];
    std::snprintf(line, sizeof line, format, a, b);
    return line;
}

// Raw -> what the network takes, in float32 as NumPy computes it.
float normal(float x, const Normalisation &n) {
    if (n.kind == "rgb") return x / 255.0f;
    if (n.kind == "ct") return (std::min(std::max(x, n.low), n.high) - n.mean) / n.std;
    return x;
}

}  // namespace

Stream::Stream(const Manifest &manifest, Network network, double frame_time)
    : manifest(manifest), network(std::move(network)), frame_time(frame_time) {
    for (const auto &n : manifest.channels)
        if (n.kind != "ct" && n.kind != "rgb" && n.kind != "none")
            throw Refused(EDGESEG_BUNDLE, manifest.name + ": normalises by '" + n.kind + "', which needs the whole "
                          "clip: this library streams bundles that normalise by constants (ct, rgb, none)");
    const auto &g = manifest.grid;
    const auto &in = this->network.input_shape(), &out = this->network.output_shape();
    if (in != std::vector<size_t>{1, g.channels, g.rows, g.columns} || this->network.input_type() != EDGESEG_FLOAT32 ||
        this->network.output_labels() || out != std::vector<size_t>{1, manifest.label_values.size(), g.rows, g.columns})
        throw Refused(EDGESEG_BUNDLE, manifest.name + ": the network is for other frames than the manifest says: "
                      "export the bundle again");
    reset();
}

void Stream::reset() {
    before.reset();
    shortest = std::numeric_limits<double>::infinity();
    forget();
}

void Stream::forget() {
    known = next_known = 0;
    last_labels.clear();
    network.reset();
}

edgeseg_status Stream::push(const edgeseg_frame &frame, std::optional<double> time, uint8_t *labels,
                            std::string &words) {
    to_float(frame, raw);
    const bool sized = same_size(frame, manifest.grid);
    if (sized && !last_labels.empty() && raw == last) {
        std::copy(last_labels.begin(), last_labels.end(), labels);
        words = "stall: the same pixels as of the frame before";
        known = next_known;
        return EDGESEG_FLAGGED;
    }
    const std::string flag = passed(time), problem = wrong(frame);
    if (!flag.empty() || !problem.empty()) forget();
    if (!problem.empty()) {
        words = problem;
        return EDGESEG_BAD_FRAME;
    }
    try {
        segment(labels);
    } catch (...) {
        forget();
        throw;
    }
    last.swap(raw);
    last_labels.assign(labels, labels + size_t{frame.rows} * frame.columns);
    known = next_known++;
    words = flag;
    return flag.empty() ? EDGESEG_OK : EDGESEG_FLAGGED;
}

// Why a frame is none for this network; "" when it is one.
std::string Stream::wrong(const edgeseg_frame &frame) const {
    const auto &g = manifest.grid;
    if (!same_size(frame, g) || !same_spacing(frame, g))
        return "size: " + std::to_string(frame.channels) + " channel(s) of " +
               frame_name(frame.rows, frame.columns, frame.row_mm, frame.column_mm) + " mm, this network takes " +
               std::to_string(g.channels) + " of " + frame_name(g.rows, g.columns, g.row_mm, g.column_mm) +
               " mm: state reset";
    return ::problem(frame);
}

// Note the time of a frame and say why it is not the successor of the one before; "" when it is.
std::string Stream::passed(std::optional<double> now) {
    const auto then = before;
    if (!now || std::isfinite(*now)) before = now;
    if (!now || !then) return "";
    const double since = *now - *then;
    if (!(since > 0)) return text("time: %g s does not come after %g s: state reset", *now, *then);
    const double usual = frame_time > 0 ? frame_time : std::min(shortest, since);
    shortest = std::min(shortest, since);
    return since > GAP * usual ? text("gap: %.3g s without a frame: state reset", since) : "";
}

void Stream::segment(uint8_t *labels) {
    const size_t area = size_t{manifest.grid.rows} * manifest.grid.columns;
    auto *input = static_cast<float *>(network.input());
    for (size_t c = 0; c < manifest.channels.size(); c++) {
        Normalisation n = manifest.channels[c];
        n.std = std::max(n.std, 1e-8f);
        std::transform(raw.begin() + static_cast<std::ptrdiff_t>(c * area),
                       raw.begin() + static_cast<std::ptrdiff_t>((c + 1) * area), input + c * area,
                       [&](float x) { return normal(x, n); });
    }
    const auto *logits = static_cast<const float *>(network.run());
    for (size_t i = 0; i < area; i++) {  // the first of the largest; a NaN wins over nothing and lets nothing win
        size_t best = 0;
        float most = logits[i];
        for (size_t k = 1; k < manifest.label_values.size(); k++) {
            const float value = logits[k * area + i];
            if (value > most) best = k;
            if (value > most || std::isnan(value)) most = value;
        }
        labels[i] = manifest.label_values[best];
    }
}

#include "frame.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

constexpr double SPACING_TOLERANCE = 1e-4;  // relative

size_t bytes_of(int32_t type) {
    switch (type) {
        case EDGESEG_UINT8: return 1;
        case EDGESEG_INT16:
        case EDGESEG_UINT16: return 2;
        case EDGESEG_FLOAT32: return 4;
        default: throw Refused(EDGESEG_ARGUMENT, "unknown pixel type " + std::to_string(type));
    }
}

size_t product(std::initializer_list<size_t> factors) {
    size_t total = 1;
    for (const size_t n : factors)
        if (__builtin_mul_overflow(total, n, &total)) throw Refused(EDGESEG_ARGUMENT, "the frame is too large");
    return total;
}

size_t count_of(const edgeseg_frame &frame) { return size_t{frame.channels} * frame.rows * frame.columns; }

// `work` on the pixels one by one; they may lie at any address.
template <class Pixel, class Work>
void each(const edgeseg_frame &frame, Work work) {
    const auto *bytes = static_cast<const unsigned char *>(frame.pixels);
    for (size_t i = 0, count = count_of(frame); i < count; i++) {
        Pixel pixel;
        std::memcpy(&pixel, bytes + i * sizeof pixel, sizeof pixel);
        work(pixel);
    }
}

template <class Work>
void each(const edgeseg_frame &frame, Work work) {
    switch (frame.type) {
        case EDGESEG_UINT8: return each<uint8_t>(frame, work);
        case EDGESEG_INT16: return each<int16_t>(frame, work);
        case EDGESEG_UINT16: return each<uint16_t>(frame, work);
        default: return each<float>(frame, work);
    }
}

std::string decimal(double value) {  // the shortest that is this number again
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        std::snprintf(text, sizeof text, "%.*g", digits, value);
        if (std::strtod(text, nullptr) == value) break;
    }
    return text;
}

}  // namespace

std::string frame_name(uint32_t rows, uint32_t columns, double row_mm, double column_mm) {
    return std::to_string(rows) + "x" + std::to_string(columns) + "@" + decimal(row_mm) +
           (row_mm == column_mm ? "" : "x" + decimal(column_mm));
}

const char *type_name(int32_t type) {
    static const char *const names[] = {"any", "uint8", "int16", "uint16", "float32"};
    return names[type];
}

void check_call(const edgeseg_frame *frame, const uint8_t *labels, size_t labels_size) {
    if (!frame || !frame->pixels || !labels) throw Refused(EDGESEG_ARGUMENT, "frame, pixels or labels is NULL");
    const size_t area = product({frame->rows, frame->columns});
    const size_t bytes = product({area, frame->channels, bytes_of(frame->type)});
    if (!bytes) throw Refused(EDGESEG_ARGUMENT, "the frame has no pixels");
    const auto fits = [](const char *what, size_t given, size_t expected) {
        if (given != expected)
            throw Refused(EDGESEG_ARGUMENT, std::string(what) + " is " + std::to_string(given) +
                                                ", for this frame it must be " + std::to_string(expected));
    };
    fits("pixels_size", frame->pixels_size, bytes);
    fits("labels_size", labels_size, area);
    if (!(std::isfinite(frame->row_mm) && std::isfinite(frame->column_mm) && frame->row_mm > 0 && frame->column_mm > 0))
        throw Refused(EDGESEG_ARGUMENT, "row_mm and column_mm must be above 0 and finite");
}

bool same_size(const edgeseg_frame &frame, const Protocol &protocol) {
    return frame.channels == protocol.channels && frame.rows == protocol.rows && frame.columns == protocol.columns &&
           (protocol.type == EDGESEG_ANY || frame.type == protocol.type);
}

bool same_spacing(const edgeseg_frame &frame, const Protocol &protocol) {
    const auto close = [](double a, double b) { return std::abs(a - b) <= SPACING_TOLERANCE * b; };
    return close(frame.row_mm, protocol.row_mm) && close(frame.column_mm, protocol.column_mm);
}

std::string problem(const edgeseg_frame &frame) {
    bool finite = true, constant = true, first = true;
    double one = 0;
    each(frame, [&](auto pixel) {
        const auto value = static_cast<double>(pixel);
        if (first) one = value;
        first = false;
        finite = finite && std::isfinite(value);
        constant = constant && value == one;
    });
    return !finite ? "the image holds NaN or infinite values" : constant ? "the image is constant" : "";
}

void to_float(const edgeseg_frame &frame, std::vector<float> &out) {
    out.clear();
    out.reserve(count_of(frame));
    each(frame, [&](auto pixel) { out.push_back(static_cast<float>(pixel)); });
}

// The C++ wrapper: damaged bundles, threads, floating point state, float frames, streams.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <thread>

#include "edgeseg.hpp"

namespace fs = std::filesystem;

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);          \
            std::exit(1);                                                                         \
        }                                                                                         \
    } while (0)

namespace {

using Labels = std::vector<std::uint8_t>;

template <class Pixel>
std::vector<Pixel> image(const edgeseg_graph &graph, int seed) {  // a bright disc that moves with the seed
    std::vector<Pixel> pixels;
    for (std::uint32_t c = 0; c < graph.channels; c++)
        for (std::uint32_t y = 0; y < graph.rows; y++)
            for (std::uint32_t x = 0; x < graph.columns; x++) {
                const double dy = y - graph.rows / 2.0 + seed % 5, dx = x - graph.columns / 2.0 - seed % 3;
                const double radius = std::hypot(dy, dx) / graph.rows;
                pixels.push_back(static_cast<Pixel>((radius < 0.15 ? 190 : radius < 0.2 ? 60 : 100) + (x * y) % 17));
            }
    return pixels;
}

template <class Pixel>
edgeseg_frame framed(const std::vector<Pixel> &pixels, const edgeseg_graph &g) {
    return edgeseg::frame(pixels.data(), g.rows, g.columns, g.row_mm, g.column_mm, g.channels);
}

// A copy of a bundle that is removed at the end.
struct Copy {
    fs::path folder;
    explicit Copy(const fs::path &bundle) {
        std::string pattern = (fs::temp_directory_path() / "edgeseg-test-XXXXXX").string();
        CHECK(mkdtemp(pattern.data()));
        folder = pattern;
        fs::copy(bundle, folder, fs::copy_options::recursive);
    }
    ~Copy() { fs::remove_all(folder); }

    void refused(const std::string &words) const {
        try {
            edgeseg::Segmenter segmenter(folder.string());
        } catch (const edgeseg::Error &error) {
            if (std::string(error.what()).find(words) == std::string::npos) std::fputs(error.what(), stderr);
            CHECK(error.code == EDGESEG_BUNDLE);
            CHECK(std::string(error.what()).find(words) != std::string::npos);
            return;
        }
        CHECK(!"refused");
    }
};

std::string text_of(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path &path, const std::string &text) { std::ofstream(path, std::ios::binary) << text; }

void a_bundle_that_is_not_as_it_was_made_is_refused(const std::string &bundle) {
    const Copy copy(bundle);
    const auto sums = copy.folder / "SHA256SUMS", licence = copy.folder / "LICENSE";
    const auto listed = text_of(sums), licensed = text_of(licence);
    write(licence, licensed + " ");
    copy.refused("LICENSE: changed since");
    fs::remove(licence);
    copy.refused("LICENSE: missing");
    fs::create_symlink(bundle + "/LICENSE", licence);
    copy.refused("no links");
    fs::remove(licence);
    write(licence, licensed);
    write(copy.folder / "more", "x");
    copy.refused("more: does not belong");
    fs::remove(copy.folder / "more");
    const std::string digest(64, 'a');
    for (const auto *name : {"../LICENSE", "/etc/passwd", "frames/../../x", "a\\b", "C:x", "x.", "frames//x"}) {
        write(sums, listed + digest + "  " + name + "\n");
        copy.refused("leaves the bundle");
    }
    const auto nameless = listed + digest + "  \n";
    for (const auto &text : {std::string(), listed + "x", listed + listed, listed.substr(1), nameless}) {
        write(sums, text);
        copy.refused("damaged");
    }
    fs::remove(sums);
    copy.refused("no bundle");
    write(sums, listed);
    edgeseg::Segmenter whole(copy.folder.string());
    CHECK(whole.info().graph_count > 0);
}

void handles_in_two_threads_agree_with_one_alone(const std::string &bundle) {
    const auto all = [&](Labels &total) {
        edgeseg::Segmenter segmenter(bundle, {"int8", 1});
        const auto &graph = segmenter.info().graphs[0];
        Labels labels;
        for (int i = 0; i < 12; i++) {
            const auto pixels = image<std::uint16_t>(graph, i);
            CHECK(segmenter.segment(framed(pixels, graph), labels).ok());
            total.insert(total.end(), labels.begin(), labels.end());
        }
    };
    Labels alone, first, second;
    all(alone);
    std::thread one(all, std::ref(first)), other(all, std::ref(second));
    one.join();
    other.join();
    CHECK(alone == first && alone == second);
    CHECK(std::count(alone.begin(), alone.end(), 0) < std::ptrdiff_t(alone.size()));
}

// Denormals and the rounding mode are the host's; the masks do not depend on them.
void the_floating_point_state_of_the_host_stays_and_does_not_matter(const std::string &bundle) {
    volatile float tiny = std::numeric_limits<float>::min(), half = 0.5f;
    CHECK(tiny * half > 0);
    edgeseg::Segmenter segmenter(bundle, {"int8", 1});
    CHECK(tiny * half > 0);
    const auto &graph = segmenter.info().graphs[0];
    const auto pixels = image<std::uint16_t>(graph, 1);
    Labels expected, labels;
    CHECK(segmenter.segment(framed(pixels, graph), expected).ok());
    CHECK(tiny * half > 0);
    std::fesetround(FE_UPWARD);
    CHECK(segmenter.segment(framed(pixels, graph), labels).ok());
    CHECK(std::fegetround() == FE_UPWARD);
    std::fesetround(FE_TONEAREST);
    CHECK(labels == expected);
}

void refusals_throw_and_a_moved_segmenter_works(const std::string &bundle) {
    edgeseg::Segmenter first(bundle);
    const auto graph = first.info().graphs[0];
    edgeseg::Segmenter segmenter = std::move(first);
    const auto pixels = image<std::uint16_t>(graph, 0);
    auto frame = framed(pixels, graph);
    Labels labels;
    CHECK(segmenter.segment(frame, labels).ok() && labels.size() == std::size_t{graph.rows} * graph.columns);
    frame.row_mm *= 2;
    try {
        segmenter.segment(frame, labels);
        CHECK(!"refused");
    } catch (const edgeseg::Error &error) {
        CHECK(error.code == EDGESEG_NO_GRAPH);
    }
}

void a_float_frame_with_nan_is_flagged_and_the_next_one_is_whole(const std::string &bundle) {
    edgeseg::Segmenter segmenter(bundle, {"fp32", 1});
    const auto &graph = segmenter.info().graphs[0];
    CHECK(graph.type == EDGESEG_FLOAT32);
    const auto good = image<float>(graph, 2);
    Labels expected, labels;
    CHECK(segmenter.segment(framed(good, graph), expected).ok());
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
        auto pixels = good;
        pixels[pixels.size() / 2] = bad;
        const auto status = segmenter.segment(framed(pixels, graph), labels);
        CHECK(status.code == EDGESEG_BAD_FRAME && status.text.find("NaN") != std::string::npos);
        CHECK(labels == Labels(labels.size(), 0));
    }
    CHECK(segmenter.segment(framed(good, graph), labels).ok() && labels == expected);
}

void a_stream_remembers_and_survives_bad_frames(const std::string &bundle) {
    edgeseg::Segmenter stream(bundle, {"fp32", 1, 0.02});
    const auto graph = stream.info().graphs[0];
    CHECK(stream.info().recurrent && graph.type == EDGESEG_ANY);
    std::vector<std::vector<std::uint8_t>> frames;
    for (int i = 0; i < 4; i++) frames.push_back(image<std::uint8_t>(graph, i));
    Labels labels;
    std::vector<Labels> expected;
    const auto clip = [&] {
        std::vector<Labels> found;
        for (std::size_t i = 0; i < frames.size(); i++) {
            const auto status = stream.push(framed(frames[i], graph), labels, 0.02 * double(i));
            CHECK(status.ok() && status.remembered == i);
            found.push_back(labels);
        }
        return found;
    };
    expected = clip();
    stream.reset();
    CHECK(clip() == expected);
    auto status = stream.push(framed(frames[3], graph), labels, 0.08);
    CHECK(status.code == EDGESEG_FLAGGED && status.text.rfind("stall", 0) == 0 && labels == expected[3]);
    status = stream.push(framed(frames[0], graph), labels, 0.06 + 0.2);
    CHECK(status.code == EDGESEG_FLAGGED && status.text.rfind("gap", 0) == 0 && labels == expected[0]);
    auto floats = image<float>(graph, 1);
    floats[0] = NAN;
    status = stream.push(framed(floats, graph), labels, 0.28);
    CHECK(status.code == EDGESEG_BAD_FRAME && status.remembered == 0 && labels == Labels(labels.size(), 0));
    const auto small = edgeseg::frame(frames[0].data(), graph.rows, graph.columns / 2, graph.row_mm, graph.column_mm);
    status = stream.push(small, labels);
    CHECK(status.code == EDGESEG_BAD_FRAME && status.text.rfind("size", 0) == 0);
    CHECK(stream.push(framed(frames[0], graph), labels).ok() && labels == expected[0]);
    try {
        stream.segment(framed(frames[0], graph), labels);
        CHECK(!"refused");
    } catch (const edgeseg::Error &error) {
        CHECK(error.code == EDGESEG_ARGUMENT);
    }
}

}  // namespace

int main(int argc, char **argv) {
    const auto bundle = [&](int i) { return std::string(argc > i ? argv[i] : ""); };
    a_bundle_that_is_not_as_it_was_made_is_refused(bundle(1));
    handles_in_two_threads_agree_with_one_alone(bundle(1));
    the_floating_point_state_of_the_host_stays_and_does_not_matter(bundle(1));
    refusals_throw_and_a_moved_segmenter_works(bundle(1));
    if (!bundle(2).empty()) a_float_frame_with_nan_is_flagged_and_the_next_one_is_whole(bundle(2));
    if (!bundle(3).empty()) a_stream_remembers_and_survives_bad_frames(bundle(3));
    const bool all = !bundle(2).empty() && !bundle(3).empty();
    std::puts(all ? "as it should be" : "as it should be; not all bundles were given");
    return 0;
}

// The C interface: what a handle holds, and the line that no exception crosses.
#include "edgeseg.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <optional>

#include "bundle.hpp"
#include "frame.hpp"
#include "network.hpp"
#include "stream.hpp"

namespace {

// A bundle that runs: frame graphs, one for each protocol, or a stream.
struct Engine {
    Bundle bundle;
    std::string precision, runtime = runtime_version();
    std::vector<Protocol> protocols;
    std::vector<Network> networks;  // of the protocols
    std::optional<Stream> stream;
    std::vector<const char *> label_names;
    std::vector<edgeseg_graph> graphs;
    edgeseg_info info{};

    Engine(const std::string &path, const edgeseg_options &options) : bundle(open_bundle(path)) {
        const auto &m = bundle.manifest;
        const int threads = options.threads ? options.threads : default_threads();
        precision = options.precision ? options.precision : m.int8_admitted && has("int8") ? "int8" : "fp32";
        if (precision != "int8" && precision != "fp32")
            throw Refused(EDGESEG_ARGUMENT, "unknown precision '" + precision + "': choose int8 or fp32");
        if (threads < 1) throw Refused(EDGESEG_ARGUMENT, "threads must be at least 1");
        if (!(std::isfinite(options.frame_time) && options.frame_time >= 0))
            throw Refused(EDGESEG_ARGUMENT, "frame_time must be a number of seconds, 0 if nobody knows");
        if (!has(precision))
            throw Refused(EDGESEG_BUNDLE, path + ": has no " + precision + (m.recurrent ? " network" : " frame graph") +
                          (has("int8") || has("fp32") ? ": choose the other precision, or " : ": ") + "make one: " +
                          (m.recurrent ? "`edgeseg export`" : "`edgeseg export --frame ROWSxCOLUMNS@MM --dtype TYPE`"));
        if (m.recurrent)
            stream.emplace(m, Network(bundle.folder / ("model." + precision + ".xml"), threads, true),
                           options.frame_time > 0 ? options.frame_time : m.frame_time);
        else
            for (const auto &p : m.protocols)
                if (bundle.files.count(file(p, precision))) load(p, threads);
        describe(threads);
    }

    static std::string file(const Protocol &p, const std::string &precision) {
        return "frames/" + p.name + "/" + precision + ".xml";
    }

    bool has(const std::string &wanted) const {
        const auto &m = bundle.manifest;
        if (m.recurrent) return bundle.files.count("model." + wanted + ".xml");
        for (const auto &p : m.protocols)
            if (bundle.files.count(file(p, wanted))) return true;
        return false;
    }

    void load(const Protocol &p, int threads) {
        Network network(bundle.folder / file(p, precision), threads, false);
        if (network.input_shape() != std::vector<size_t>{1, p.channels, p.rows, p.columns} ||
            network.input_type() != p.type || !network.output_labels() ||
            network.output_shape() != std::vector<size_t>{1, p.rows, p.columns})
            throw Refused(EDGESEG_BUNDLE, file(p, precision) + ": is for other frames than the manifest says: export "
                          "the bundle again");
        protocols.push_back(p);
        networks.push_back(std::move(network));
    }

    void describe(int threads) {
        const auto &m = bundle.manifest;
        for (const auto &name : m.label_names) label_names.push_back(name.c_str());
        if (stream) protocols.push_back(m.grid);
        for (const auto &p : protocols)
            graphs.push_back({p.name.c_str(), p.type, p.channels, p.rows, p.columns, p.row_mm, p.column_mm});
        info = {m.name.c_str(), m.task.c_str(), m.intended_use.c_str(), precision.c_str(), runtime.c_str(), threads,
                m.recurrent, static_cast<uint32_t>(label_names.size()), label_names.data(), m.label_values.data(),
                static_cast<uint32_t>(graphs.size()), graphs.data()};
    }

    edgeseg_status segment(const edgeseg_frame &frame, uint8_t *labels, std::string &words) {
        if (stream) throw Refused(EDGESEG_ARGUMENT, "this network remembers earlier frames: use edgeseg_push");
        for (size_t i = 0; i < protocols.size(); i++) {
            if (!same_size(frame, protocols[i]) || !same_spacing(frame, protocols[i])) continue;
            words = problem(frame);
            if (!words.empty()) return EDGESEG_BAD_FRAME;
            std::memcpy(networks[i].input(), frame.pixels, frame.pixels_size);
            std::memcpy(labels, networks[i].run(), size_t{frame.rows} * frame.columns);
            return EDGESEG_OK;
        }
        std::string known;
        for (const auto &p : protocols) known += (known.empty() ? "" : ", ") + p.name;
        const auto name = frame_name(frame.rows, frame.columns, frame.row_mm, frame.column_mm);
        throw Refused(EDGESEG_NO_GRAPH, "no " + precision + " frame graph for frames " + name + " of " +
                      type_name(frame.type) + ", " + std::to_string(frame.channels) + " channel(s); there is " + known +
                      ": `edgeseg export --frame " + name + " --dtype " + type_name(frame.type) + "` makes it");
    }

    edgeseg_status push(const edgeseg_frame &frame, std::optional<double> time, uint8_t *labels, uint64_t &remembered,
                        std::string &words) {
        if (!stream) return segment(frame, labels, words);
        const auto status = stream->push(frame, time, labels, words);
        remembered = stream->remembered();
        return status;
    }
};

}  // namespace

struct edgeseg_handle {
    std::unique_ptr<Engine> engine;
    std::string words;
    const char *said = "";

    // `work` (words -> status), and what it threw as a status.
    template <class Work>
    edgeseg_status guard(Work work) noexcept {
        try {
            words.clear();
            const auto status = work(words);
            said = words.c_str();
            return status;
        } catch (const Refused &error) {
            return say(error.status, error.what());
        } catch (const std::exception &error) {
            return say(EDGESEG_FAILED, error.what());
        } catch (...) {
            return say(EDGESEG_FAILED, "an unknown failure");
        }
    }

    edgeseg_status say(edgeseg_status status, const char *line) noexcept {
        try {
            words = line;
            for (char &c : words)
                if (c == '\n' || c == '\r') c = ' ';
            said = words.c_str();
        } catch (...) {
            said = "out of memory";
        }
        return status;
    }

    Engine &running() const {
        if (!engine) throw Refused(EDGESEG_ARGUMENT, "this handle was not opened");
        return *engine;
    }
};

uint32_t edgeseg_abi(void) { return EDGESEG_ABI; }

edgeseg_status edgeseg_open(uint32_t abi, const char *bundle, const edgeseg_options *options, edgeseg_handle **out) {
    if (!out) return EDGESEG_ARGUMENT;
    *out = new (std::nothrow) edgeseg_handle;
    if (!*out) return EDGESEG_FAILED;
    return (*out)->guard([&](std::string &) {
        if (abi != EDGESEG_ABI)
            throw Refused(EDGESEG_ARGUMENT, "compiled for ABI " + std::to_string(abi) + ", this library is ABI " +
                          std::to_string(EDGESEG_ABI) + ": compile again with its edgeseg.h");
        if (!bundle) throw Refused(EDGESEG_ARGUMENT, "bundle is NULL");
        (*out)->engine = std::make_unique<Engine>(bundle, options ? *options : edgeseg_options{});
        return EDGESEG_OK;
    });
}

const edgeseg_info *edgeseg_get_info(const edgeseg_handle *handle) {
    return handle && handle->engine ? &handle->engine->info : nullptr;
}

edgeseg_status edgeseg_segment(edgeseg_handle *handle, const edgeseg_frame *frame, uint8_t *labels,
                               size_t labels_size) {
    if (labels) std::memset(labels, 0, labels_size);
    if (!handle) return EDGESEG_ARGUMENT;
    return handle->guard([&](std::string &words) {
        check_call(frame, labels, labels_size);
        return handle->running().segment(*frame, labels, words);
    });
}

edgeseg_status edgeseg_push(edgeseg_handle *handle, const edgeseg_frame *frame, const double *time, uint8_t *labels,
                            size_t labels_size, uint64_t *remembered) {
    if (labels) std::memset(labels, 0, labels_size);
    uint64_t known = 0;
    if (remembered) *remembered = 0;
    if (!handle) return EDGESEG_ARGUMENT;
    const auto status = handle->guard([&](std::string &words) {
        check_call(frame, labels, labels_size);
        const auto when = time ? std::optional<double>(*time) : std::nullopt;
        return handle->running().push(*frame, when, labels, known, words);
    });
    if (remembered) *remembered = known;
    return status;
}

edgeseg_status edgeseg_reset(edgeseg_handle *handle) {
    if (!handle) return EDGESEG_ARGUMENT;
    return handle->guard([&](std::string &) {
        if (auto &stream = handle->running().stream) stream->reset();
        return EDGESEG_OK;
    });
}

const char *edgeseg_last_error(const edgeseg_handle *handle) { return handle ? handle->said : "the handle is NULL"; }

void edgeseg_close(edgeseg_handle *handle) { delete handle; }

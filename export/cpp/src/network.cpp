#include "network.hpp"

#include <algorithm>
#include <cfenv>
#include <cstring>
#include <openvino/core/preprocess/pre_post_process.hpp>
#include <openvino/openvino.hpp>
#include <openvino/runtime/intel_cpu/properties.hpp>

#include "bundle.hpp"

namespace {

// The floating point state of the calling thread, put back at the end. OpenVINO turns denormals off in the thread that
// compiles and counts on it there when it runs: the host keeps its own state, the network always has the one that it
// was compiled with.
class FloatState {
  public:
    FloatState() { std::fegetenv(&before); }
    explicit FloatState(const std::fenv_t &wanted) : FloatState() { std::fesetenv(&wanted); }
    ~FloatState() { std::fesetenv(&before); }
    FloatState(const FloatState &) = delete;
    FloatState &operator=(const FloatState &) = delete;

  private:
    std::fenv_t before;
};

ov::AnyMap settings(int threads) {  // those of edgeseg/runtime/openvino_backend.py: the same numbers
    return {ov::hint::inference_precision(ov::element::f32),
            ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY), ov::num_streams(1),
            ov::inference_num_threads(threads), ov::intel_cpu::denormals_optimization(true)};
}

// States in the layout in which the convolutions work, channels together: nothing is turned round on the way in and out.
std::shared_ptr<ov::Model> states_channels_last(const std::shared_ptr<ov::Model> &model) {
    ov::preprocess::PrePostProcessor process(model);
    for (size_t i = 1; i < model->inputs().size(); i++) {
        process.input(i).model().set_layout("NCHW");
        process.input(i).tensor().set_layout("NHWC");
    }
    for (size_t i = 1; i < model->outputs().size(); i++) {
        process.output(i).model().set_layout("NCHW");
        process.output(i).tensor().set_layout("NHWC");
    }
    return process.build();
}

int32_t type_of(const ov::element::Type &type) {
    if (type == ov::element::u8) return EDGESEG_UINT8;
    if (type == ov::element::i16) return EDGESEG_INT16;
    if (type == ov::element::u16) return EDGESEG_UINT16;
    return type == ov::element::f32 ? EDGESEG_FLOAT32 : EDGESEG_ANY;
}

}  // namespace

struct Network::Impl {
    std::fenv_t state;
    std::vector<ov::InferRequest> requests;
    ov::Shape in, out;
    int32_t type = EDGESEG_ANY;
    bool labels = false;
    size_t states = 0, turn = 0;

    Impl(const std::filesystem::path &xml, int threads, bool recurrent) {
        const FloatState host;
        std::fesetenv(FE_DFL_ENV);
        ov::Core core;
        auto graph = core.read_model(xml.string());
        if (recurrent) graph = states_channels_last(graph);
        auto model = core.compile_model(graph, "CPU", settings(threads));
        std::fegetenv(&state);
        check(model, recurrent);
        // two that take turns: what one writes as its next states the other reads as its states, nothing is copied
        for (size_t i = 0; i < (states ? 2 : 1); i++) requests.push_back(model.create_infer_request());
        for (size_t i = 1; i <= states; i++)
            for (size_t mine : {0, 1})
                requests[1 - mine].set_input_tensor(i, requests[mine].get_output_tensor(i));
    }

    void check(const ov::CompiledModel &model, bool recurrent) {
        const auto &inputs = model.inputs(), &outputs = model.outputs();
        const auto fixed = [](const auto &port) { return port.get_partial_shape().is_static(); };
        if (inputs.empty() || inputs.size() != outputs.size() || (inputs.size() > 1) != recurrent ||
            !std::all_of(inputs.begin(), inputs.end(), fixed) || !std::all_of(outputs.begin(), outputs.end(), fixed))
            throw std::runtime_error("it has other inputs and outputs than the manifest says");
        states = inputs.size() - 1;
        for (size_t i = 1; i <= states; i++) {
            const auto &before = inputs[i], &after = outputs[i];
            const auto &names = before.get_names();
            const auto goes_on = [&](const auto &name) { return after.get_names().count(name + "_next") > 0; };
            if (std::none_of(names.begin(), names.end(), goes_on) ||
                before.get_shape() != after.get_shape() || before.get_element_type() != after.get_element_type())
                throw std::runtime_error("state " + std::to_string(i) + " has no output of its name and shape");
        }
        in = inputs[0].get_shape();
        out = outputs[0].get_shape();
        type = type_of(inputs[0].get_element_type());
        labels = outputs[0].get_element_type() == ov::element::u8 && out.size() == 3;
        if (in.size() != 4 || in[0] != 1 || out[0] != 1 || type == EDGESEG_ANY ||
            (!labels && (outputs[0].get_element_type() != ov::element::f32 || out.size() != 4)))
            throw std::runtime_error("it does not take one image or does not give labels or logits");
    }

    void *input() { return requests[turn].get_input_tensor(0).data(); }

    const void *run() {
        const FloatState host(state);
        auto &request = requests[turn];
        turn = (turn + 1) % requests.size();
        request.infer();
        return request.get_output_tensor(0).data();
    }

    void reset() {
        turn = 0;
        for (size_t i = 1; i <= states; i++) {
            auto tensor = requests[0].get_input_tensor(i);
            std::memset(tensor.data(), 0, tensor.get_byte_size());
        }
    }
};

Network::Network(const std::filesystem::path &xml, int threads, bool recurrent) try
    : impl(std::make_unique<Impl>(xml, threads, recurrent)) {
    reset();
    for (int i = 0; i < 2; i++) {
        std::memset(input(), 0, impl->requests[impl->turn].get_input_tensor(0).get_byte_size());
        run();
    }
    reset();
} catch (const std::bad_alloc &) {
    throw;
} catch (const std::exception &error) {
    std::string line = error.what();  // the last line of many usually says what the runtime stumbled over
    line.erase(line.find_last_not_of(" \n") + 1);
    line.erase(0, line.rfind('\n') + 1);
    throw Refused(EDGESEG_BUNDLE, xml.string() + ": OpenVINO cannot run this network (" + line.substr(0, 200) +
                                      "): export it again");
}

Network::Network(Network &&) noexcept = default;
Network::~Network() = default;
const std::vector<size_t> &Network::input_shape() const { return impl->in; }
int32_t Network::input_type() const { return impl->type; }
const std::vector<size_t> &Network::output_shape() const { return impl->out; }
bool Network::output_labels() const { return impl->labels; }
void *Network::input() { return impl->input(); }
const void *Network::run() { return impl->run(); }
void Network::reset() { impl->reset(); }

std::string runtime_version() { return ov::get_openvino_version().buildNumber; }

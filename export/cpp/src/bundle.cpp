#include "bundle.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr auto SUMS = "SHA256SUMS", MANIFEST = "manifest.json";
constexpr int SCHEMA_VERSION = 1;
constexpr std::uintmax_t LARGEST_TEXT = 1 << 24;  // bytes of SUMS and of MANIFEST: they have about 1 and 60 kB
constexpr uint32_t LARGEST_SIDE = 8192;           // as of `edgeseg export --frame`

Refused refused(const std::string &where, const std::string &what) {
    return {EDGESEG_BUNDLE, where + ": " + what};
}

std::string read_text(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file || fs::file_size(path) > LARGEST_TEXT)
        throw refused(path.string(), "not readable: copy the bundle again");
    return {std::istreambuf_iterator<char>(file), {}};
}

std::string sha256(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    if (!context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1)
        throw std::runtime_error("OpenSSL has no SHA-256");
    std::vector<char> chunk(1 << 16);
    while (file.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || file.gcount())
        EVP_DigestUpdate(context.get(), chunk.data(), static_cast<size_t>(file.gcount()));
    if (!file.eof()) throw refused(path.string(), "not readable");
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
    unsigned size = 0;
    EVP_DigestFinal_ex(context.get(), digest.data(), &size);
    std::string text;
    for (unsigned i = 0; i < size; i++)
        for (const int half : {digest[i] >> 4, digest[i] & 15}) text += "0123456789abcdef"[half];
    return text;
}

// A relative name with forward slashes that stays in its folder, and means the same on every system.
bool is_safe(const std::string &name) {
    for (const unsigned char c : name)
        if (c < 32 || c == 127 || c == '\\' || c == ':') return false;
    for (size_t begin = 0;;) {
        const size_t end = std::min(name.find('/', begin), name.size());
        if (end == begin || name[end - 1] == '.' || name[end - 1] == ' ') return false;
        if (end == name.size()) return true;
        begin = end + 1;
    }
}

// SHA256SUMS: lines of 64 hexadecimal digits, two spaces and a name.
std::map<std::string, std::string> read_sums(const fs::path &folder) {
    const auto path = folder / SUMS;
    if (!fs::is_regular_file(fs::symlink_status(path)))
        throw refused(folder.string(), "no bundle (it has no SHA256SUMS): name a folder that `edgeseg export` made");
    const std::string text = read_text(path);
    std::map<std::string, std::string> sums;
    for (size_t begin = 0; begin < text.size() || sums.empty();) {
        const size_t end = text.find('\n', begin);
        const std::string line = text.substr(begin, end == std::string::npos ? end : end - begin);
        const bool good = end != std::string::npos && line.size() > 66 && line.compare(64, 2, "  ") == 0 &&
                          line.find_first_not_of("0123456789abcdef") == 64;
        const std::string name = good ? line.substr(66) : "";
        if (!good || sums.count(name)) throw refused(path.string(), "damaged: copy the bundle again");
        if (!is_safe(name))
            throw refused(path.string(), "the name '" + name + "' leaves the bundle: do not use this bundle");
        sums[name] = line.substr(0, 64);
        begin = end + 1;
    }
    return sums;
}

std::set<std::string> list_files(const fs::path &folder) {
    std::set<std::string> found;
    for (const auto &entry : fs::recursive_directory_iterator(folder)) {  // does not go through links
        const auto status = entry.symlink_status();
        if (fs::is_regular_file(status))
            found.insert(entry.path().lexically_relative(folder).generic_string());
        else if (!fs::is_directory(status))
            throw refused(entry.path().string(), "a bundle holds plain files only, no links: do not use this bundle");
    }
    return found;
}

std::set<std::string> checked_files(const fs::path &folder) {
    const auto sums = read_sums(folder);
    auto present = list_files(folder);
    for (const auto &[name, digest] : sums)
        if (!present.count(name))
            throw refused((folder / name).string(), "missing, but SHA256SUMS lists it: copy the bundle again");
    for (const auto &name : present)
        if (name != SUMS && !sums.count(name))
            throw refused((folder / name).string(),
                          "does not belong to this bundle (SHA256SUMS does not list it): remove it");
    for (const auto &[name, digest] : sums)
        if (sha256(folder / name) != digest)
            throw refused((folder / name).string(), "changed since the bundle was made: copy the bundle again");
    if (!sums.count(MANIFEST)) throw refused(folder.string(), "the bundle has no manifest.json: copy it again");
    return present;
}

template <class T>
T whole(const json &value, T least, T most) {
    const auto number = value.is_number_integer() ? value.get<int64_t>() : -1;
    if (number < static_cast<int64_t>(least) || number > static_cast<int64_t>(most))
        throw std::out_of_range(value.dump() + " is not in " + std::to_string(least) + ".." + std::to_string(most));
    return static_cast<T>(number);
}

double millimetres(const json &value) {
    const auto number = value.get<double>();
    if (!(number > 0)) throw std::out_of_range("a spacing of " + value.dump() + " mm");
    return number;
}

Protocol protocol_of(const json &block, const std::string &name, int32_t type, size_t channels) {
    const auto &size = block.at("size"), &spacing = block.at("spacing");
    return {name, type, static_cast<uint32_t>(channels), whole(size.at(0), 1u, LARGEST_SIDE),
            whole(size.at(1), 1u, LARGEST_SIDE), millimetres(spacing.at(0)), millimetres(spacing.at(1))};
}

// As `Admission.admitted`: all gates of these files but speed, which depends on the machine; at least one of accuracy.
bool int8_admitted(const json &measured) {
    const auto admission = measured.value("admission", json());
    bool accuracy = false;
    if (admission.is_null()) return false;
    for (const auto &gate : admission.at("gates")) {
        const auto subject = gate.at("subject").get<std::string>(), kind = gate.at("kind").get<std::string>();
        if ((subject != "openvino int8" && subject != "int8 files") || kind == "speed") continue;
        if (!gate.at("passed").get<bool>()) return false;
        accuracy = accuracy || kind == "accuracy";
    }
    return accuracy;
}

Manifest manifest_of(const json &from) {
    static const std::map<std::string, int32_t> types{
        {"uint8", EDGESEG_UINT8}, {"int16", EDGESEG_INT16}, {"uint16", EDGESEG_UINT16}, {"float32", EDGESEG_FLOAT32}};
    const auto version = whole(from.at("schema_version"), 0, 1 << 30);
    if (version != SCHEMA_VERSION)
        throw std::out_of_range("schema version " + std::to_string(version) + ", this library reads " +
                                std::to_string(SCHEMA_VERSION) + ": update it");
    Manifest m;
    from.at("name").get_to(m.name);
    from.at("task").get_to(m.task);
    from.at("intended_use").get_to(m.intended_use);
    from.at("labels").at("names").get_to(m.label_names);
    for (const auto &value : from.at("labels").at("values")) m.label_values.push_back(whole<uint8_t>(value, 0, 255));
    if (m.label_names.empty() || m.label_names.size() != m.label_values.size())
        throw std::out_of_range("labels: not as many names as values");
    const auto &grid = from.at("preprocessing");
    for (const auto &c : grid.at("channels"))
        m.channels.push_back({c.at("kind").get<std::string>(), c.at("mean").get<float>(), c.at("std").get<float>(),
                              c.at("low").get<float>(), c.at("high").get<float>()});
    m.grid = protocol_of(grid, "stream", EDGESEG_ANY, m.channels.size());
    for (const auto &f : from.value("frames", json::array()))
        m.protocols.push_back(protocol_of(f, f.at("name").get<std::string>(),
                                          types.at(f.at("dtype").get<std::string>()), m.channels.size()));
    const auto stream = from.value("stream", json());
    m.recurrent = !stream.is_null();
    const auto time = m.recurrent ? stream.at("frame_time") : json();
    m.frame_time = time.is_null() ? 0 : time.get<double>();
    m.int8_admitted = int8_admitted(from.at("measured"));
    return m;
}

}  // namespace

Bundle open_bundle(const std::string &path) {
    fs::path folder = fs::u8path(path);
    try {
        if (!fs::is_directory(folder))
            throw refused(path, fs::exists(folder) ? "is a file: unpack it with `edgeseg bundle unpack`"
                                                   : "no bundle: name a folder that `edgeseg export` made");
        folder = fs::canonical(folder);
        auto files = checked_files(folder);
        try {
            return {folder, std::move(files), manifest_of(json::parse(read_text(folder / MANIFEST)))};
        } catch (const Refused &) {
            throw;
        } catch (const json::parse_error &) {  // its words quote what was no UTF-8
            throw refused((folder / MANIFEST).string(), "not a readable manifest: copy the bundle again");
        } catch (const std::exception &error) {
            throw refused((folder / MANIFEST).string(), std::string("not a manifest that this library can read (") +
                                                            error.what() + "): export the bundle again");
        }
    } catch (const fs::filesystem_error &error) {
        throw refused(path, std::string("not readable (") + error.code().message() + "): copy the bundle again");
    }
}

// A bundle folder: its hashes are checked before anything in it is read.
#pragma once

#include <filesystem>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "edgeseg.h"

struct Refused : std::runtime_error {
    Refused(edgeseg_status status, const std::string &line) : std::runtime_error(line), status(status) {}
    edgeseg_status status;
};

// Raw frames of one shape, spacing in mm and pixel type (edgeseg_type), for which there is a frame graph.
struct Protocol {
    std::string name;
    int32_t type;
    uint32_t channels, rows, columns;
    double row_mm, column_mm;
};

// Of one channel, by constants: "ct", "rgb" or "none"; any other needs statistics of the image.
struct Normalisation {
    std::string kind;
    float mean, std, low, high;
};

struct Manifest {
    std::string name, task, intended_use;
    std::vector<std::string> label_names;
    std::vector<uint8_t> label_values;
    std::vector<Normalisation> channels;
    Protocol grid;  // of the network: where frames of a stream lie
    std::vector<Protocol> protocols;
    bool recurrent;
    double frame_time;   // seconds; 0: unknown
    bool int8_admitted;  // in OpenVINO, on the data of the bundle's maker
};

struct Bundle {
    std::filesystem::path folder;
    std::set<std::string> files;
    Manifest manifest;
};

// Throws Refused (EDGESEG_BUNDLE): no bundle, a changed, missing or extra file, a link, a name that leaves the folder,
// a manifest that this library cannot read.
Bundle open_bundle(const std::string &path);

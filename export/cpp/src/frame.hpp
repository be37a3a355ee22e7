// A frame as the host gives it: how large it is, and what may be wrong with it.
#pragma once

#include <string>
#include <vector>

#include "bundle.hpp"

// "256x216@1.40625", as `edgeseg export --frame` takes it.
std::string frame_name(uint32_t rows, uint32_t columns, double row_mm, double column_mm);

// "uint16", as `edgeseg export --dtype` takes it.
const char *type_name(int32_t type);

// Throws Refused (EDGESEG_ARGUMENT): a null pointer, or sizes that do not fit each other.
void check_call(const edgeseg_frame *frame, const uint8_t *labels, size_t labels_size);

// Whether frames of this size, type and spacing are those of the protocol. Scanners round a spacing to six digits.
bool same_size(const edgeseg_frame &frame, const Protocol &protocol);
bool same_spacing(const edgeseg_frame &frame, const Protocol &protocol);

// Why these pixels cannot be segmented; "" when they can.
std::string problem(const edgeseg_frame &frame);

// The pixels as float32, which every type fits into.
void to_float(const edgeseg_frame &frame, std::vector<float> &out);

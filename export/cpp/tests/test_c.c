/* The C interface from C: what a caller may do wrong, and what becomes of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgeseg.h"

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

/* Both halves of the image differ: no constant one. */
static void fill(uint16_t *pixels, size_t count) {
    size_t i;
    for (i = 0; i < count; i++) pixels[i] = (uint16_t)(i < count / 2 ? 100 : 100 + i % 900);
}

static void nothing_opens_without_a_bundle(void) {
    edgeseg_handle *handle = NULL;
    CHECK(edgeseg_open(EDGESEG_ABI, "x", NULL, NULL) == EDGESEG_ARGUMENT);
    CHECK(edgeseg_open(EDGESEG_ABI, NULL, NULL, &handle) == EDGESEG_ARGUMENT);
    CHECK(handle && strstr(edgeseg_last_error(handle), "bundle is NULL"));
    CHECK(edgeseg_get_info(handle) == NULL);
    CHECK(edgeseg_reset(handle) == EDGESEG_ARGUMENT);
    CHECK(strstr(edgeseg_last_error(handle), "not opened"));
    edgeseg_close(handle);
    CHECK(edgeseg_open(EDGESEG_ABI + 1, "x", NULL, &handle) == EDGESEG_ARGUMENT);
    CHECK(strstr(edgeseg_last_error(handle), "compile again"));
    edgeseg_close(handle);
    CHECK(edgeseg_open(EDGESEG_ABI, "there is none", NULL, &handle) == EDGESEG_BUNDLE);
    CHECK(strstr(edgeseg_last_error(handle), "there is none: no bundle"));
    edgeseg_close(handle);
}

static void options_are_checked(const char *bundle) {
    edgeseg_options options[] = {{"int4", 0, 0}, {NULL, -1, 0}, {NULL, 1, -0.5}};
    const char *named[] = {"int4", "threads", "frame_time"};
    edgeseg_handle *handle;
    size_t i;
    for (i = 0; i < 3; i++) {
        CHECK(edgeseg_open(EDGESEG_ABI, bundle, &options[i], &handle) == EDGESEG_ARGUMENT);
        CHECK(strstr(edgeseg_last_error(handle), named[i]));
        edgeseg_close(handle);
    }
}

static void null_is_refused_everywhere(void) {
    edgeseg_frame frame = {NULL, 0, EDGESEG_UINT8, 1, 1, 1, 1, 1};
    uint8_t label = 9;
    CHECK(edgeseg_abi() == EDGESEG_ABI);
    CHECK(edgeseg_get_info(NULL) == NULL);
    CHECK(edgeseg_segment(NULL, &frame, &label, 1) == EDGESEG_ARGUMENT);
    CHECK(label == 0);
    CHECK(edgeseg_push(NULL, &frame, NULL, &label, 1, NULL) == EDGESEG_ARGUMENT);
    CHECK(edgeseg_reset(NULL) == EDGESEG_ARGUMENT);
    CHECK(strstr(edgeseg_last_error(NULL), "NULL"));
    edgeseg_close(NULL);
}

static void bad_calls_leave_background_and_their_words(edgeseg_handle *handle, edgeseg_frame good,
                                                       uint8_t *labels, size_t size) {
    edgeseg_frame frame = good;
    CHECK(edgeseg_segment(handle, NULL, labels, size) == EDGESEG_ARGUMENT);
    CHECK(edgeseg_segment(handle, &good, NULL, size) == EDGESEG_ARGUMENT);
    CHECK(edgeseg_segment(handle, &good, labels, size - 1) == EDGESEG_ARGUMENT);
    CHECK(strstr(edgeseg_last_error(handle), "labels_size"));
    frame.pixels = NULL;
    CHECK(edgeseg_segment(handle, &frame, labels, size) == EDGESEG_ARGUMENT);
    frame = good, frame.pixels_size--;
    memset(labels, 7, size);
    CHECK(edgeseg_segment(handle, &frame, labels, size) == EDGESEG_ARGUMENT);
    CHECK(strstr(edgeseg_last_error(handle), "pixels_size"));
    CHECK(labels[0] == 0 && labels[size - 1] == 0);
    frame = good, frame.type = 77;
    CHECK(edgeseg_segment(handle, &frame, labels, size) == EDGESEG_ARGUMENT);
    frame = good, frame.row_mm = 0;
    CHECK(edgeseg_segment(handle, &frame, labels, size) == EDGESEG_ARGUMENT);
    frame = good, frame.channels = 0, frame.pixels_size = 0;
    CHECK(edgeseg_segment(handle, &frame, labels, size) == EDGESEG_ARGUMENT);
    CHECK(strstr(edgeseg_last_error(handle), "no pixels"));
    frame = good, frame.rows = 0xffffffffu, frame.columns = 0xffffffffu, frame.channels = 0xffffffffu;
    CHECK(edgeseg_segment(handle, &frame, labels, size) == EDGESEG_ARGUMENT);
    CHECK(strstr(edgeseg_last_error(handle), "too large"));
}

static void frames_without_a_graph_name_the_command_that_makes_one(edgeseg_handle *handle, edgeseg_frame good,
                                                                   uint8_t *labels, size_t size) {
    edgeseg_frame frame = good;
    char expected[200];
    frame.row_mm = good.row_mm * 1.001;
    CHECK(edgeseg_segment(handle, &frame, labels, size) == EDGESEG_NO_GRAPH);
    frame = good, frame.type = EDGESEG_INT16, frame.rows = good.columns, frame.columns = good.rows;
    frame.row_mm = 1.4, frame.column_mm = 1.5;
    CHECK(edgeseg_push(handle, &frame, NULL, labels, size, NULL) == EDGESEG_NO_GRAPH);
    sprintf(expected, "`edgeseg export --frame %ux%u@1.4x1.5 --dtype int16`", frame.rows, frame.columns);
    CHECK(strstr(edgeseg_last_error(handle), expected));
    frame = good, frame.row_mm *= 1.00001;
    CHECK(edgeseg_segment(handle, &frame, labels, size) == EDGESEG_OK);
}

static void a_frame_is_segmented_and_a_constant_one_flagged(edgeseg_handle *handle, edgeseg_frame good,
                                                            uint16_t *pixels, uint8_t *labels, size_t size) {
    const edgeseg_info *info = edgeseg_get_info(handle);
    uint8_t *again = malloc(size);
    size_t i;
    uint32_t k;
    CHECK(again);
    CHECK(edgeseg_segment(handle, &good, labels, size) == EDGESEG_OK);
    CHECK(edgeseg_last_error(handle)[0] == 0);
    for (i = 0; i < size; i++) {
        for (k = 0; k < info->label_count && info->label_values[k] != labels[i];) k++;
        CHECK(k < info->label_count);
    }
    CHECK(edgeseg_push(handle, &good, NULL, again, size, NULL) == EDGESEG_OK);
    CHECK(memcmp(labels, again, size) == 0);
    for (i = 0; i < size * good.channels; i++) pixels[i] = 500;
    memset(labels, 7, size);
    CHECK(edgeseg_segment(handle, &good, labels, size) == EDGESEG_BAD_FRAME);
    CHECK(strstr(edgeseg_last_error(handle), "constant"));
    for (i = 0; i < size; i++) CHECK(labels[i] == 0);
    fill(pixels, size * good.channels);
    CHECK(edgeseg_segment(handle, &good, labels, size) == EDGESEG_OK);
    CHECK(memcmp(labels, again, size) == 0);
    free(again);
}

static void each_handle_keeps_its_own_words(edgeseg_handle *handle, const char *bundle) {
    edgeseg_handle *other;
    CHECK(edgeseg_segment(handle, NULL, NULL, 0) == EDGESEG_ARGUMENT);
    CHECK(edgeseg_open(EDGESEG_ABI, bundle, NULL, &other) == EDGESEG_OK);
    CHECK(edgeseg_last_error(other)[0] == 0);
    CHECK(strstr(edgeseg_last_error(handle), "NULL"));
    CHECK(edgeseg_reset(handle) == EDGESEG_OK);
    CHECK(edgeseg_last_error(handle)[0] == 0);
    edgeseg_close(other);
}

int main(int argc, char **argv) {
    const char *bundle = argc > 1 ? argv[1] : "cine.edgeseg";
    const edgeseg_options options = {"int8", 1, 0};
    const edgeseg_graph *graph;
    const edgeseg_info *info;
    edgeseg_handle *handle;
    edgeseg_frame frame;
    uint16_t *pixels;
    uint8_t *labels;
    size_t size;

    nothing_opens_without_a_bundle();
    null_is_refused_everywhere();
    options_are_checked(bundle);
    if (edgeseg_open(EDGESEG_ABI, bundle, &options, &handle) != EDGESEG_OK) fputs(edgeseg_last_error(handle), stderr);
    info = edgeseg_get_info(handle);
    CHECK(info);
    CHECK(info->threads == 1 && !info->recurrent && strcmp(info->precision, "int8") == 0);
    CHECK(info->label_count > 1 && info->label_values[0] == 0 && info->graph_count > 0);
    graph = &info->graphs[0];
    CHECK(graph->type == EDGESEG_UINT16);
    size = (size_t)graph->rows * graph->columns;
    pixels = malloc(size * graph->channels * sizeof *pixels);
    labels = malloc(size);
    CHECK(pixels && labels);
    fill(pixels, size * graph->channels);
    frame.pixels = pixels, frame.pixels_size = size * graph->channels * sizeof *pixels;
    frame.type = graph->type, frame.channels = graph->channels, frame.rows = graph->rows;
    frame.columns = graph->columns, frame.row_mm = graph->row_mm, frame.column_mm = graph->column_mm;

    bad_calls_leave_background_and_their_words(handle, frame, labels, size);
    frames_without_a_graph_name_the_command_that_makes_one(handle, frame, labels, size);
    a_frame_is_segmented_and_a_constant_one_flagged(handle, frame, pixels, labels, size);
    each_handle_keeps_its_own_words(handle, bundle);
    edgeseg_close(handle);
    free(pixels);
    free(labels);
    puts("as it should be");
    return 0;
}

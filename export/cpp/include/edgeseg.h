/* edgeseg.h: the C interface to edgeseg bundles. Raw frames in, label maps out, on a plain CPU.
 *
 *     edgeseg_handle *scanner;
 *     if (edgeseg_open(EDGESEG_ABI, "cine.edgeseg", NULL, &scanner) != EDGESEG_OK) puts(edgeseg_last_error(scanner));
 *     edgeseg_status status = edgeseg_segment(scanner, &frame, labels, sizeof labels);
 *     edgeseg_close(scanner);
 *
 * A bundle serves one of two kinds of frames. With frame graphs: raw frames of the shapes, spacings and pixel types
 * that edgeseg_get_info lists, each by itself; resampling and normalisation are inside the graph. With a recurrent
 * network: the frames of a clip, one after the other, in the grid of the network (edgeseg_push).
 *
 * Threads: a handle is used by one thread at a time, any thread; different handles by as many threads as there are.
 * There is no state outside the handles. The floating point state of the calling thread is left as it was.
 * No C++ exception leaves a function. Text is UTF-8. Nothing is printed. */
#ifndef EDGESEG_H
#define EDGESEG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this interface. What is declared here never changes within one; libedgeseg.so.1 is ABI 1. */
#define EDGESEG_ABI 1
#define EDGESEG_API __attribute__((visibility("default")))

typedef struct edgeseg_handle edgeseg_handle;

/* From 0 up the frame was judged, below 0 the call was refused. Every value but EDGESEG_OK has its words in
 * edgeseg_last_error. Labels are all 0 (background) with anything but EDGESEG_OK and EDGESEG_FLAGGED. */
typedef enum edgeseg_status {
    EDGESEG_OK = 0,
    EDGESEG_FLAGGED = 1,    /* segmented, but the stream was not as it should be: a gap, a clock that stands, a stall */
    EDGESEG_BAD_FRAME = 2,  /* NaN or infinite pixels, a constant image; of a stream also another size */
    EDGESEG_ARGUMENT = -1,  /* a null pointer, a size that cannot be, a function that this bundle has no use for */
    EDGESEG_BUNDLE = -2,    /* no bundle, a damaged one, or one that this library cannot run */
    EDGESEG_NO_GRAPH = -3,  /* no frame graph for such frames; the words name the command that makes it */
    EDGESEG_FAILED = -4     /* the runtime failed, or memory ended */
} edgeseg_status;

typedef enum edgeseg_type {
    EDGESEG_ANY = 0,  /* only in edgeseg_graph: a stream takes all of them */
    EDGESEG_UINT8 = 1,
    EDGESEG_INT16 = 2,
    EDGESEG_UINT16 = 3,
    EDGESEG_FLOAT32 = 4
} edgeseg_type;

/* Zeros mean the defaults. */
typedef struct edgeseg_options {
    const char *precision; /* "int8" or "fp32"; default: int8 where the bundle admits it, else fp32 */
    int32_t threads;       /* of the network; default: physical cores that affinity and the cgroup quota leave */
    double frame_time;     /* seconds between frames of a stream; default: as in training, else the shortest so far */
} edgeseg_options;

/* One raw frame [channels][rows][columns], without gaps. */
typedef struct edgeseg_frame {
    const void *pixels;
    size_t pixels_size; /* bytes */
    int32_t type;       /* edgeseg_type */
    uint32_t channels, rows, columns;
    double row_mm, column_mm; /* size of a pixel */
} edgeseg_frame;

/* A kind of frames that can be segmented. */
typedef struct edgeseg_graph {
    const char *name; /* for example "256x216@1.40625-uint16", or "stream" */
    int32_t type;     /* edgeseg_type */
    uint32_t channels, rows, columns;
    double row_mm, column_mm;
} edgeseg_graph;

typedef struct edgeseg_info {
    const char *name, *task, *intended_use;
    const char *precision; /* "int8" or "fp32" */
    const char *runtime;   /* version of OpenVINO */
    int32_t threads;
    int32_t recurrent; /* 1: edgeseg_push; 0: edgeseg_segment, or edgeseg_push without memory */
    uint32_t label_count;
    const char *const *label_names; /* the background first */
    const uint8_t *label_values;
    uint32_t graph_count;
    const edgeseg_graph *graphs;
} edgeseg_info;

/* The ABI of the library that was loaded. */
EDGESEG_API uint32_t edgeseg_abi(void);

/* Check every hash of a bundle folder, load its networks and run each twice: the first frame is as fast as any other.
 *
 * abi      EDGESEG_ABI: what the caller was compiled with; another one is refused.
 * options  may be NULL.
 * out      gets a handle, whatever is returned: after a refusal it knows nothing but edgeseg_last_error. NULL when
 *          memory ended. To be closed in every case. */
EDGESEG_API edgeseg_status edgeseg_open(uint32_t abi, const char *bundle, const edgeseg_options *options,
                                        edgeseg_handle **out);

/* What the handle runs, valid until it is closed; NULL for one that did not open. */
EDGESEG_API const edgeseg_info *edgeseg_get_info(const edgeseg_handle *handle);

/* One raw frame by itself -> the label value of each pixel, [rows][columns]. The bundle needs a frame graph for exactly
 * such frames (spacing to 1e-4). labels_size is rows * columns. */
EDGESEG_API edgeseg_status edgeseg_segment(edgeseg_handle *handle, const edgeseg_frame *frame, uint8_t *labels,
                                           size_t labels_size);

/* The next frame of a clip -> its labels, with what the network remembers of those before it.
 *
 * time        when it was taken, in seconds of any clock; NULL: at its turn.
 * remembered  gets how many frames before it the network knew of; may be NULL.
 *
 * A gap of more than 5 frame times or a clock that does not go on: state reset, frame segmented, FLAGGED. The pixels
 * of the frame before: its labels again, state as it was, FLAGGED. A bad frame: background, state reset, BAD_FRAME. So
 * one bad frame costs what is remembered, never the stream. */
EDGESEG_API edgeseg_status edgeseg_push(edgeseg_handle *handle, const edgeseg_frame *frame, const double *time,
                                        uint8_t *labels, size_t labels_size, uint64_t *remembered);

/* A new clip: everything that came before is forgotten. */
EDGESEG_API edgeseg_status edgeseg_reset(edgeseg_handle *handle);

/* What the last call on this handle said, one line, valid until the next one; "" after EDGESEG_OK. Never NULL. */
EDGESEG_API const char *edgeseg_last_error(const edgeseg_handle *handle);

/* Free everything. NULL is fine. */
EDGESEG_API void edgeseg_close(edgeseg_handle *handle);

#ifdef __cplusplus
}
#endif

#endif

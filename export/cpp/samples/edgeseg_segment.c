/* edgeseg_segment: a file of raw frames in, a file of label maps out, and how long each frame took.
 *
 *     edgeseg_segment cine.edgeseg frames.raw 256x216@1.40625 uint16 --out labels.raw --threads 2
 *
 * Frames lie one after the other, [channels][rows][columns] in the byte order of this machine; label maps as uint8
 * [rows][columns]. A recurrent bundle gets them as one clip. --passes N goes over the frames N times. With --wait a
 * pass begins with each line on standard input, and its latencies in ms come as one line on standard output. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "edgeseg.h"

typedef struct Job {
    const char *bundle, *frames, *out;
    edgeseg_options options;
    edgeseg_frame frame; /* the pixels are filled in for each */
    long passes;
    int wait;
    size_t count, labels_size;
    unsigned char *pixels;
    uint8_t *labels;
    double *ms; /* of one pass */
} Job;

static const char *const TYPES[] = {"any", "uint8", "int16", "uint16", "float32"};
static const size_t BYTES[] = {0, 1, 2, 2, 4};

static int usage(void) {
    fputs("usage: edgeseg_segment BUNDLE FRAMES ROWSxCOLUMNS@MM[xMM] uint8|int16|uint16|float32 [--out LABELS]\n"
          "           [--precision int8|fp32] [--threads N] [--passes N] [--wait]\n", stderr);
    return 2;
}

static int parse(Job *job, int argc, char **argv) {
    edgeseg_frame *f = &job->frame;
    int found, i;
    if (argc < 5) return 0;
    job->bundle = argv[1];
    job->frames = argv[2];
    found = sscanf(argv[3], "%ux%u@%lfx%lf", &f->rows, &f->columns, &f->row_mm, &f->column_mm);
    if (found == 3) f->column_mm = f->row_mm;
    for (f->type = EDGESEG_FLOAT32; f->type > 0 && strcmp(argv[4], TYPES[f->type]) != 0;) f->type--;
    if (found < 3 || f->type == 0) return 0;
    job->passes = 1;
    for (i = 5; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--wait") == 0) {
            job->wait = 1;
            continue;
        }
        if (!value) return 0;
        if (strcmp(argv[i], "--out") == 0) job->out = value;
        else if (strcmp(argv[i], "--precision") == 0) job->options.precision = value;
        else if (strcmp(argv[i], "--threads") == 0) job->options.threads = (int32_t)strtol(value, NULL, 10);
        else if (strcmp(argv[i], "--passes") == 0) job->passes = strtol(value, NULL, 10);
        else return 0;
        i++;
    }
    return job->passes > 0;
}

static int fail(const char *what, const char *why) {
    fprintf(stderr, "edgeseg_segment: %s: %s\n", what, why);
    return 1;
}

/* All frames of the file; 0, or an exit code. */
static int load(Job *job) {
    FILE *file = fopen(job->frames, "rb");
    long size = -1;
    if (file && fseek(file, 0, SEEK_END) == 0) size = ftell(file);
    if (size <= 0 || (size_t)size % job->frame.pixels_size) {
        if (file) fclose(file);
        return fail(job->frames, size > 0 ? "is no whole number of such frames" : "cannot be read or is empty");
    }
    job->count = (size_t)size / job->frame.pixels_size;
    job->pixels = malloc((size_t)size);
    job->labels = malloc(job->count * job->labels_size);
    job->ms = malloc(job->count * (size_t)job->passes * sizeof *job->ms);
    rewind(file);
    if (!job->pixels || !job->labels || !job->ms) size = -1;
    if (size > 0 && fread(job->pixels, 1, (size_t)size, file) != (size_t)size) size = -1;
    fclose(file);
    return size < 0 ? fail(job->frames, "does not fit into memory") : 0;
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* Every frame once; 0, or an exit code when a call was refused. */
static int pass(edgeseg_handle *scanner, Job *job, double *ms) {
    size_t i;
    edgeseg_reset(scanner);
    for (i = 0; i < job->count; i++) {
        uint8_t *labels = job->labels + i * job->labels_size;
        double start = now_ms();
        edgeseg_status status;
        job->frame.pixels = job->pixels + i * job->frame.pixels_size;
        status = edgeseg_push(scanner, &job->frame, NULL, labels, job->labels_size, NULL);
        ms[i] = now_ms() - start;
        if (status < 0) return fail(job->bundle, edgeseg_last_error(scanner));
        if (status > 0) fprintf(stderr, "frame %zu: %s\n", i, edgeseg_last_error(scanner));
    }
    return 0;
}

static int answer(edgeseg_handle *scanner, Job *job) {
    int c;
    puts("ready");
    fflush(stdout);
    while ((c = getchar()) != EOF) {
        size_t i;
        if (c != '\n') continue;
        if (pass(scanner, job, job->ms)) return 1;
        for (i = 0; i < job->count; i++) printf("%.6f ", job->ms[i]);
        putchar('\n');
        fflush(stdout);
    }
    return 0;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int run(edgeseg_handle *scanner, Job *job) {
    const edgeseg_info *info = edgeseg_get_info(scanner);
    const size_t all = job->count * (size_t)job->passes;
    FILE *file;
    long i;
    for (i = 0; i < job->passes; i++)
        if (pass(scanner, job, job->ms + (size_t)i * job->count)) return 1;
    if (job->out) {
        file = fopen(job->out, "wb");
        if (!file || fwrite(job->labels, job->labels_size, job->count, file) != job->count || fclose(file))
            return fail(job->out, "cannot be written");
    }
    qsort(job->ms, all, sizeof *job->ms, ascending);
    printf("%s %s, OpenVINO %s, %d thread(s): %zu frames\n", info->name, info->precision, info->runtime,
           (int)info->threads, job->count);
    printf("latency  median %.3f ms, p99 %.3f ms, n %zu\n", job->ms[(all - 1) / 2], job->ms[(all * 99 + 99) / 100 - 1],
           all);
    return 0;
}

int main(int argc, char **argv) {
    Job job;
    edgeseg_handle *scanner = NULL;
    int code;
    memset(&job, 0, sizeof job);
    if (!parse(&job, argc, argv)) return usage();
    if (edgeseg_open(EDGESEG_ABI, job.bundle, &job.options, &scanner) != EDGESEG_OK) {
        code = fail("edgeseg_open", edgeseg_last_error(scanner));
    } else {
        job.frame.channels = edgeseg_get_info(scanner)->graphs[0].channels;
        job.labels_size = (size_t)job.frame.rows * job.frame.columns;
        job.frame.pixels_size = job.labels_size * job.frame.channels * BYTES[job.frame.type];
        code = job.frame.pixels_size ? load(&job) : usage();
        if (!code) code = job.wait ? answer(scanner, &job) : run(scanner, &job);
    }
    free(job.pixels);
    free(job.labels);
    free(job.ms);
    edgeseg_close(scanner);
    return code;
}

/* Speaks the line protocol of the conformance kit: a line in, a call of the library in a thread of its own, lines out. */
#define _POSIX_C_SOURCE 200809L
#include <cjson/cJSON.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../agentmesh.h"

typedef struct line {
    struct line *next;
    cJSON *json;
    const char *id, *op, *agent;
    am_cancel *cancel;
    int64_t paused_until;
} line;

static am_client *mesh;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all_done = PTHREAD_COND_INITIALIZER;
static line *open_lines;

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void say(cJSON *made) {
    char *text = cJSON_PrintUnformatted(made);
    pthread_mutex_lock(&lock);
    puts(text);
    fflush(stdout);
    pthread_mutex_unlock(&lock);
    free(text);
    cJSON_Delete(made);
}

static const char *text(const line *l, const char *name) { return cJSON_GetStringValue(cJSON_GetObjectItem(l->json, name)); }
static bool flag(const line *l, const char *name) { return cJSON_IsTrue(cJSON_GetObjectItem(l->json, name)); }
static double number(const line *l, const char *name) {
    const cJSON *found = cJSON_GetObjectItem(l->json, name);
    return cJSON_IsNumber(found) ? found->valuedouble : 0;
}
static char *json_of(const line *l, const char *name) {
    const cJSON *found = cJSON_GetObjectItem(l->json, name);
    return found == NULL || cJSON_IsNull(found) ? NULL : cJSON_PrintUnformatted(found);
}

static void add(cJSON *to, const char *name, const char *value) {
    if (value != NULL) cJSON_AddStringToObject(to, name, value);
}

static cJSON *error_of(const am_error *error) {
    cJSON *made = cJSON_CreateObject();
    add(made, "code", error->code);
    add(made, "message", error->message);
    if (error->details != NULL) cJSON_AddRawToObject(made, "details", error->details);
    return made;
}

static unsigned char *decoded(const char *base64, size_t *length) {
    unsigned char *made = malloc(strlen(base64) + 1);
    unsigned bits = 0;
    int have = 0;
    *length = 0;
    for (const char *at = base64; *at != 0 && *at != '='; at++) {
        const char *digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        bits = bits << 6 | (unsigned)(strchr(digits, *at) - digits);
        if ((have += 6) >= 8) made[(*length)++] = (unsigned char)(bits >> (have -= 8));
    }
    return made;
}

static bool heard(const am_event *event, void *closure) {
    line *l = closure;
    cJSON *made = cJSON_CreateObject();
    add(made, "id", l->id);
    cJSON_AddRawToObject(made, "event", event->json);
    say(made);
    for (;;) {
        pthread_mutex_lock(&lock);
        int64_t left = l->paused_until - now_ms();
        pthread_mutex_unlock(&lock);
        if (left <= 0) return true;
        struct timespec pause = {0, 10000000};
        nanosleep(&pause, NULL);
    }
}

static am_result *prompted(line *l, const am_wait *wait) {
    am_attachment files[16];
    size_t count = 0, length = 0;
    const cJSON *file = NULL;
    cJSON_ArrayForEach(file, cJSON_GetObjectItem(l->json, "attachments")) {
        if (count == 16) break;
        size_t size = 0;
        files[count].filename = cJSON_GetStringValue(cJSON_GetObjectItem(file, "filename"));
        files[count].content = decoded(cJSON_GetStringValue(cJSON_GetObjectItem(file, "content")), &size);
        files[count++].length = size;
    }
    char *metadata = json_of(l, "metadata"), *budget = json_of(l, "budget");
    unsigned char *bytes = text(l, "prompt_base64") == NULL ? NULL : decoded(text(l, "prompt_base64"), &length);
    char end_by[40] = "";
    if (number(l, "end_by_s") > 0) {
        struct timespec end;
        clock_gettime(CLOCK_REALTIME, &end);
        int64_t ms = (int64_t)end.tv_sec * 1000 + end.tv_nsec / 1000000 + (int64_t)(number(l, "end_by_s") * 1000);
        time_t seconds = (time_t)(ms / 1000);
        struct tm parts;
        gmtime_r(&seconds, &parts);
        size_t at = strftime(end_by, sizeof end_by, "%Y-%m-%dT%H:%M:%S", &parts);
        snprintf(end_by + at, sizeof end_by - at, ".%03dZ", (int)(ms % 1000));
    }
    am_prompt prompt = {
        .text = text(l, "prompt"), .bytes = bytes, .length = length, .key = text(l, "key"), .expires_ms = (int64_t)(number(l, "expires_s") * 1000),
        .end_by = *end_by ? end_by : NULL, .metadata_json = metadata, .attachments = files, .attachment_count = count, .budget_json = budget,
        .mesh_key = text(l, "mesh_key"), .traceparent = text(l, "traceparent"),
    };
    am_result *result = strcmp(l->op, "ask") == 0    ? am_ask(mesh, l->agent, &prompt, wait)
                        : strcmp(l->op, "tell") == 0 ? am_tell(mesh, l->agent, &prompt, wait)
                                                     : am_stream(mesh, l->agent, &prompt, wait, heard, l);
    while (count > 0) free((void *)files[--count].content);
    free(bytes);
    free(metadata);
    free(budget);
    return result;
}

/* The call, and which of its flags is its result; NULL: there is no such call. */
static am_result *called(line *l, const char **done) {
    am_wait wait = {(int64_t)(number(l, "timeout_s") * 1000), l->cancel};
    const char *op = l->op, *ref = text(l, "ref");
    am_result *result = NULL;
    if (strcmp(op, "ask") == 0 || strcmp(op, "tell") == 0 || strcmp(op, "stream") == 0) return prompted(l, &wait);
    if (strcmp(op, "poll") == 0) return am_poll(mesh, l->agent, ref, text(l, "mesh_key"), &wait);
    if (strcmp(op, "status") == 0) return am_status(mesh, l->agent, flag(l, "content"), &wait);
    if (strcmp(op, "interrupt") == 0) return *done = "interrupted", am_interrupt(mesh, l->agent, ref, &wait);
    if (strcmp(op, "resume") == 0) return *done = "resumed", am_resume(mesh, l->agent, &wait);
    if (strcmp(op, "cancel_timer") == 0) return *done = "cancelled", am_cancel_timer(mesh, l->agent, text(l, "timer"), &wait);
    if (strcmp(op, "cancel") == 0) return *done = "cancelled", am_cancel_request(mesh, l->agent, ref, flag(l, "tree"), text(l, "mesh_key"), &wait);
    char *event = json_of(l, "event");
    if (strcmp(op, "notify") == 0) {
        am_prompt options = {.key = text(l, "key")};
        result = am_notify(mesh, l->agent, event == NULL ? "null" : event, &options, &wait);
    } else if (strcmp(op, "set_timer") == 0) {
        *done = "set";
        result = am_set_timer(mesh, l->agent, text(l, "timer"), event, text(l, "at"), number(l, "after_s"), number(l, "every_s"), &wait);
    }
    free(event);
    return result;
}

static cJSON *result_of(const line *l, const am_result *result, const char *done) {
    bool whole = strcmp(l->op, "ask") == 0 || strcmp(l->op, "stream") == 0 || strcmp(l->op, "status") == 0;
    cJSON *made = whole ? cJSON_Parse(result->json) : cJSON_CreateObject();
    if (strcmp(l->op, "stream") == 0) add(made, "shown", result->shown);
    if (whole) return made;
    if (done != NULL) cJSON_AddBoolToObject(made, done, result->done);
    add(made, "due", result->due);
    add(made, "status", result->status);
    if (strcmp(l->op, "tell") == 0 || strcmp(l->op, "notify") == 0) {
        add(made, "ref", result->ref);
        cJSON_AddBoolToObject(made, "duplicate", result->duplicate);
    }
    if (result->status != NULL && strcmp(result->status, "completed") == 0) cJSON_AddRawToObject(made, "outcome", result->json);
    return made;
}

static void *serve(void *given) {
    line *l = given;
    cJSON *answer = cJSON_CreateObject();
    const char *done = NULL;
    am_result *result = called(l, &done);
    add(answer, "id", l->id);
    if (result == NULL)
        cJSON_AddRawToObject(answer, "error", "{\"code\":\"unsupported\"}");
    else if (result->error.code != NULL) {
        cJSON *error = error_of(&result->error), *details = cJSON_Parse(result->error.details == NULL ? "{}" : result->error.details);
        if (result->ref != NULL && cJSON_GetObjectItem(details, "ref") == NULL) add(details, "ref", result->ref);
        cJSON_DeleteItemFromObject(error, "details");
        cJSON_AddItemToObject(error, "details", details);
        cJSON_AddItemToObject(answer, "error", error);
    } else
        cJSON_AddItemToObject(answer, "result", result_of(l, result, done));
    am_result_free(result);
    pthread_mutex_lock(&lock);
    line **link = &open_lines;
    while (*link != l) link = &(*link)->next;
    *link = l->next;
    pthread_mutex_unlock(&lock);
    say(answer);
    am_cancel_destroy(l->cancel);
    cJSON_Delete(l->json);
    free(l);
    pthread_mutex_lock(&lock);
    pthread_cond_signal(&all_done);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* `cancel_local` and `pause_reading` are about another line. */
static bool about_another(line *l) {
    bool cancels = strcmp(l->op, "cancel_local") == 0, pauses = strcmp(l->op, "pause_reading") == 0;
    const char *target = text(l, "target");
    pthread_mutex_lock(&lock);
    for (line *at = open_lines; (cancels || pauses) && target != NULL && at != NULL; at = at->next) {
        if (strcmp(at->id, target) != 0) continue;
        if (cancels)
            am_cancel_fire(at->cancel);
        else
            at->paused_until = now_ms() + (int64_t)(number(l, "s") * 1000);
    }
    pthread_mutex_unlock(&lock);
    if (!cancels && !pauses) return false;
    cJSON *answer = cJSON_CreateObject();
    add(answer, "id", l->id);
    cJSON_AddRawToObject(answer, "result", "{\"done\":true}");
    say(answer);
    return true;
}

static void begin(char *read, int *started) {
    line *l = calloc(1, sizeof *l);
    l->json = cJSON_Parse(read);
    l->id = text(l, "id"), l->op = text(l, "op"), l->agent = text(l, "agent");
    if (l->id == NULL || l->op == NULL || about_another(l)) {
        cJSON_Delete(l->json);
        free(l);
        return;
    }
    if (l->agent == NULL) l->agent = "";
    l->cancel = am_cancel_create(mesh);
    pthread_mutex_lock(&lock);
    l->next = open_lines;
    open_lines = l;
    pthread_mutex_unlock(&lock);
    pthread_t thread;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 * 1024);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &small, serve, l) != 0) abort();
    pthread_attr_destroy(&small);
    (*started)++;
}

int main(void) {
    natsOptions *options = NULL;
    const char *url = getenv("MESH_CONFORMANCE_URL"), *user = getenv("MESH_CONFORMANCE_USER"), *ca = getenv("MESH_CONFORMANCE_CA");
    const char *creds = getenv("MESH_CONFORMANCE_CREDS");
    natsOptions_Create(&options);
    natsOptions_SetURL(options, url == NULL ? "nats://127.0.0.1:4222" : url);
    if (user != NULL) natsOptions_SetUserInfo(options, user, getenv("MESH_CONFORMANCE_PASSWORD"));
    if (creds != NULL) natsOptions_SetUserCredentialsFromFiles(options, creds, NULL);
    if (ca != NULL) {
        natsOptions_SetSecure(options, true);
        natsOptions_LoadCATrustedCertificates(options, ca);
    }
    am_settings settings = {.root = getenv("MESH_CONFORMANCE_ROOT"), .inbox_prefix = getenv("MESH_CONFORMANCE_INBOX_PREFIX")};
    am_error error = {0};
    cJSON *ready = cJSON_CreateObject();
    int started = 0;
    if (am_connect(&mesh, options, &settings, &error)) {
        cJSON *who = cJSON_AddObjectToObject(ready, "ready");
        char version[40];
        snprintf(version, sizeof version, "nats.c %s", nats_GetVersion());
        add(who, "client", "c");
        add(who, "version", AM_VERSION);
        add(who, "nats", version);
        say(ready);
        char *read = NULL;
        size_t room = 0;
        while (getline(&read, &room, stdin) > 0) begin(read, &started);
        free(read);
        pthread_mutex_lock(&lock);
        while (open_lines != NULL) pthread_cond_wait(&all_done, &lock);
        pthread_mutex_unlock(&lock);
        am_close(mesh);
    } else {
        cJSON_AddItemToObject(cJSON_AddObjectToObject(ready, "ready"), "error", error_of(&error));
        say(ready);
    }
    am_error_clear(&error);
    natsOptions_Destroy(options);
    nats_CloseAndWait(2000);
    return 0;
}

/*
 * agentmesh - talk to the agents of a mesh on NATS
 *
 * SYNOPSIS
 *     #include "agentmesh.h"
 *     cc program.c agentmesh.c -lnats -lcjson -lpthread
 *
 *     natsOptions *options = NULL;
 *     natsOptions_Create(&options);
 *     natsOptions_SetURL(options, "nats://127.0.0.1:4222");
 *     am_client *mesh = NULL;
 *     am_error error = {0};
 *     if (!am_connect(&mesh, options, NULL, &error)) { ... error.code, error.message ... }
 *
 *     am_prompt prompt = {.text = "rename the module"};
 *     am_wait wait = {.timeout_ms = 60000};
 *     am_result *answer = am_ask(mesh, "coder", &prompt, &wait);
 *     if (answer->error.code == NULL) puts(answer->text);
 *     am_result_free(answer);
 *     am_close(mesh);
 *
 * DESCRIPTION
 *     One source and one header over nats.c (3.4 or newer) and cJSON. What crosses the wire is in docs/protocol.md.
 *
 *     Every call blocks until it is answered, its time is over, or its cancel handle is fired; any number of threads may call at
 *     once. What was sent is sent again with its id until it is answered: a connection that breaks, a server that restarts or a
 *     node that dies costs neither the answer nor a second turn. Strings that are given are read until the call returns; strings
 *     of a result belong to it. A ref is text, because it can exceed 2^53.
 *
 * RETURN VALUE
 *     Calls return a result, never NULL; free it with am_result_free(). Its error.code is NULL if all went well.
 *
 * ERRORS
 *     error.code is the wire's code (docs/protocol.md#of-all-outcomes), or one of the client's own: the AM_ constants below.
 *     error.details is JSON: `size` and `limit` of too_large, `uncertain` of unavailable (the request may have been carried out).
 *     result->ref names the request wherever it is known, so that it can be polled.
 *
 * NOTES
 *     am_interrupt() without a ref and am_set_timer() with after_s are not sent twice: behind a broken connection they end with
 *     unavailable and `uncertain`.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef AGENTMESH_H
#define AGENTMESH_H

#include <nats/nats.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define AM_VERSION "0.1.0"

#define AM_ASK_TIMEOUT "ask_timeout"         /* the caller's time is over; what was sent goes on */
#define AM_UNAVAILABLE "unavailable"         /* no server, or nobody serves it: try again */
#define AM_NOT_PERMITTED "not_permitted"     /* the server refuses the subject, the inbox or the user */
#define AM_TOO_LARGE "too_large"             /* the server's limit */
#define AM_BAD_REQUEST "bad_request"         /* mend the request */
#define AM_NOT_FOUND "not_found"             /* no agent of that name */
#define AM_MAILBOX_FULL "mailbox_full"       /* send again later */
#define AM_CANCELLED_LOCAL "cancelled_local" /* the cancel handle was fired, or a callback returned false */

/* A client of one mesh, with its connection. */
typedef struct am_client am_client;
/* Ends a call from another thread. */
typedef struct am_cancel am_cancel;

/* Why something did not go well; code is NULL if it did. */
typedef struct {
    char *code;
    char *message;
    char *details; /* JSON, or NULL */
} am_error;

/* What a call brought. Members that the call does not speak of are NULL or false. */
typedef struct {
    am_error error;
    char *json;     /* the reply, the outcome or the status, as it came */
    char *ref;      /* the request's */
    char *text;     /* ask, stream: the answer */
    char *shown;    /* stream: the text of its events, without what is void */
    char *status;   /* poll: "pending", "completed" (json is the outcome then) or "not_found" */
    char *due;      /* set_timer: when, RFC 3339 */
    bool duplicate; /* tell, notify: the key was used before, and this is the first one's ref */
    bool done;      /* interrupt, cancel, resume, cancel_timer: whether there was something to do */
} am_result;

/* For how long a call waits. NULL, or a member that is 0, stands for the default. */
typedef struct {
    int64_t timeout_ms; /* ask, stream: 600,000; tell, notify, poll: 30,000; the others: 10,000 */
    am_cancel *cancel;
} am_wait;

typedef struct {
    const char *filename;
    const void *content;
    size_t length;
} am_attachment;

/* A prompt, or what goes with an event. Whatever is NULL or 0 is left out. */
typedef struct {
    const char *text;
    const void *bytes; /* in place of text: a body that goes as it is */
    size_t length;
    const char *key;           /* idempotency key: the same one again, within two minutes, is the same request */
    int64_t expires_ms;        /* not begun so long after it was stored: `expired` */
    const char *end_by;        /* RFC 3339: the request ends then, answered or not */
    const char *metadata_json; /* a JSON object */
    const am_attachment *attachments;
    size_t attachment_count;
    const char *budget_json; /* {"tokens":..,"usd":..,"wall_s":..,"tool_calls":..} */
    const char *mesh_key;    /* who polls or cancels the request, or repeats its key, needs the same one */
    const char *traceparent, *tracestate, *baggage;
} am_prompt;

/* A live event of a turn. */
typedef struct {
    uint64_t n;         /* counts from 1, without gaps */
    const char *type;   /* "start", "restart", "missed", "text", "thinking", "tool_use", "tool_result", "usage" */
    const char *text;   /* text, thinking, tool_result */
    uint64_t void_from; /* restart: events from this one up to here are void */
    uint64_t count;     /* missed: how many were lost, or dropped since the callback was slow */
    const char *json;   /* all of it */
} am_event;

/* Takes an event, in the thread of the call. False ends the wait; the turn goes on. */
typedef bool (*am_on_event)(const am_event *event, void *closure);

/* Sets one header; see am_settings.inject. */
typedef void (*am_set_header)(void *carrier, const char *name, const char *value);

typedef struct {
    const char *root;         /* the mesh's root token; "mesh" */
    const char *inbox_prefix; /* as the user's permissions want it; "_INBOX" */
    /* OpenTelemetry's injection of the current context, by its text-map propagator; names in lower case. */
    void (*inject)(void *carrier, am_set_header set, void *closure);
    void *closure;
} am_settings;

/* Connect. `options` (URL, credentials, TLS, ...) are read now and stay the caller's; the client sets their reconnection to "for
 * ever" and their handlers to its own. False: `error` says why. */
bool am_connect(am_client **client, natsOptions *options, const am_settings *settings, am_error *error);
/* End all waits of other threads, wait for them to return, and free the client. */
void am_close(am_client *client);

/* Prompt an agent and wait for its answer. */
am_result *am_ask(am_client *client, const char *agent, const am_prompt *prompt, const am_wait *wait);
/* As am_ask, and hear the turn's live events. */
am_result *am_stream(am_client *client, const char *agent, const am_prompt *prompt, const am_wait *wait, am_on_event heard, void *closure);
/* Prompt an agent without waiting for its answer: it is stored, and result->ref is its ref. */
am_result *am_tell(am_client *client, const char *agent, const am_prompt *prompt, const am_wait *wait);
/* Send an agent an event, any JSON; `options` may be NULL, and of it key, expires_ms and the trace count. */
am_result *am_notify(am_client *client, const char *agent, const char *event_json, const am_prompt *options, const am_wait *wait);
/* What became of a request. `mesh_key` may be NULL. */
am_result *am_poll(am_client *client, const char *agent, const char *ref, const char *mesh_key, const am_wait *wait);
/* What an agent is doing; with `content` also its own state. */
am_result *am_status(am_client *client, const char *agent, bool content, const am_wait *wait);
/* Kill the running turn; with `ref` (else NULL) only if it answers that request. */
am_result *am_interrupt(am_client *client, const char *agent, const char *ref, const am_wait *wait);
/* Take out a prompt that waits; with `tree` also end one that runs. `mesh_key` may be NULL. */
am_result *am_cancel_request(am_client *client, const char *agent, const char *ref, bool tree, const char *mesh_key, const am_wait *wait);
/* Let an agent go on that is halted or has failed. */
am_result *am_resume(am_client *client, const char *agent, const am_wait *wait);
/* Send the agent an event at a time (`at`, RFC 3339), or `after_s` seconds from now if that is NULL; then every `every_s`, if above 0. */
am_result *am_set_timer(am_client *client, const char *agent, const char *timer, const char *event_json, const char *at, double after_s,
                        double every_s, const am_wait *wait);
am_result *am_cancel_timer(am_client *client, const char *agent, const char *timer, const am_wait *wait);

/* A cancel handle for any number of calls; it must outlive them. */
am_cancel *am_cancel_create(am_client *client);
/* End its calls, present and to come, with AM_CANCELLED_LOCAL. Any thread may do so. */
void am_cancel_fire(am_cancel *cancel);
void am_cancel_destroy(am_cancel *cancel);

void am_result_free(am_result *result);
void am_error_clear(am_error *error);

#ifdef __cplusplus
}
#endif
#endif

/* See agentmesh.h. SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "agentmesh.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Milliseconds. Until what was sent is sent again, at first and at most; the same after "nobody serves this". */
enum { SILENCE_FIRST = 2000, SILENCE_MOST = 20000, PAUSE_FIRST = 100, PAUSE_MOST = 1000 };
/* Until when an id may be repeated, from when it may first have been stored: the mesh knows it for two minutes. */
enum { WINDOW = 110000 };
/* For how long nobody may serve a control request until its agent's existence is looked into. */
enum { ABSENT = 1000 };
/* Messages of a stream that wait for a slow callback. Beyond that the oldest are dropped. */
enum { BUFFER = 10000, MAX_HEADERS = 16 };

/* --- memory and text ------------------------------------------------------------------------------------------------ */

static void *must(void *made) {
    if (made == NULL) {
        fputs("agentmesh: out of memory\n", stderr);
        abort();
    }
    return made;
}

static char *copy(const char *text) { return text == NULL ? NULL : must(strdup(text)); }

__attribute__((format(printf, 1, 2), nonnull(1))) static char *format(const char *shape, ...) {
    va_list list;
    va_start(list, shape);
    int length = vsnprintf(NULL, 0, shape, list);
    va_end(list);
    char *made = must(malloc((size_t)length + 1));
    va_start(list, shape);
    vsnprintf(made, (size_t)length + 1, shape, list);
    va_end(list);
    return made;
}

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static const char *text_in(const cJSON *object, const char *name) { return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name)); }
static bool true_in(const cJSON *object, const char *name) { return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, name)); }
static char *printed(const cJSON *value) { return must(cJSON_PrintUnformatted(value)); }

static char *base64(const unsigned char *bytes, size_t length) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *made = must(malloc((length + 2) / 3 * 4 + 1)), *to = made;
    for (size_t at = 0; at < length; at += 3) {
        unsigned group = (unsigned)bytes[at] << 16;
        if (at + 1 < length) group |= (unsigned)bytes[at + 1] << 8;
        if (at + 2 < length) group |= bytes[at + 2];
        *to++ = digits[group >> 18];
        *to++ = digits[group >> 12 & 63];
        *to++ = at + 1 < length ? digits[group >> 6 & 63] : '=';
        *to++ = at + 2 < length ? digits[group & 63] : '=';
    }
    *to = 0;
    return made;
}

void am_error_clear(am_error *error) {
    free(error->code);
    free(error->message);
    free(error->details);
    memset(error, 0, sizeof *error);
}

void am_result_free(am_result *result) {
    if (result == NULL) return;
    am_error_clear(&result->error);
    free(result->json);
    free(result->ref);
    free(result->text);
    free(result->shown);
    free(result->status);
    free(result->due);
    free(result);
}

/* Takes `message` and `details`. */
static void set_error(am_error *error, const char *code, char *message, char *details) {
    am_error_clear(error);
    *error = (am_error){copy(code), message, details};
}

/* --- what is heard -------------------------------------------------------------------------------------------------- */

typedef enum { ELAPSED, REPLY, NOBODY, CONNECTED, REFUSED, CANCELLED, CLOSED } news_kind;

typedef struct news {
    struct news *next;
    news_kind kind;
    char about; /* which part of the address a reply came to: 0, 't'ell, 'p'oll */
    char *body; /* of a reply; of a refusal the server's words */
} news;

/* One conversation: what it has sent, and what has come to its address. */
typedef struct exchange {
    struct exchange *next;
    uint64_t token;
    pthread_cond_t woken;
    news *first, **last;
    const char *subjects[3];
    am_cancel *cancel;
    char **live; /* a ring of messages of the stream */
    size_t live_first, live_count;
} exchange;

struct am_client {
    natsConnection *connection;
    natsSubscription *subscription;
    pthread_mutex_t lock;
    pthread_cond_t empty;
    exchange *open;
    uint64_t count;
    char *root, *inbox, *prefix; /* of inboxes; and that of this client's */
    am_settings settings;
    bool closed, refused;
    int callbacks; /* threads of nats.c that may still call: that of the connection, and one for each subscription */
    char *why_closed;
};

struct am_cancel {
    am_client *client;
    bool fired;
};

/* Under the lock. Takes `body`. */
static void hear(exchange *x, news_kind kind, char about, char *body) {
    news *one = must(calloc(1, sizeof *one));
    *one = (news){NULL, kind, about, body};
    *x->last = one;
    x->last = &one->next;
    pthread_cond_signal(&x->woken);
}

static void hear_live(exchange *x, char *body) {
    if (x->live_count == BUFFER) {
        free(x->live[x->live_first]);
        x->live_first = (x->live_first + 1) % BUFFER;
        x->live_count--;
    }
    x->live[(x->live_first + x->live_count++) % BUFFER] = body;
    pthread_cond_signal(&x->woken);
}

static void on_message(natsConnection *connection, natsSubscription *subscription, natsMsg *message, void *closure) {
    (void)connection, (void)subscription;
    am_client *client = closure;
    const char *address = natsMsg_GetSubject(message) + strlen(client->prefix);
    char *about = NULL;
    uint64_t token = strtoull(address, &about, 10);
    int length = natsMsg_GetDataLength(message);
    pthread_mutex_lock(&client->lock);
    for (exchange *x = client->open; x != NULL; x = x->next) {
        if (x->token != token) continue;
        if (natsMsg_IsNoResponders(message)) {
            hear(x, NOBODY, *about, NULL);
            break;
        }
        char *body = must(malloc((size_t)length + 1));
        if (length > 0) memcpy(body, natsMsg_GetData(message), (size_t)length);
        body[length] = 0;
        if (*about == 'l') {
            if (x->live != NULL)
                hear_live(x, body);
            else
                free(body);
        } else
            hear(x, REPLY, *about, body);
        break;
    }
    pthread_mutex_unlock(&client->lock);
    natsMsg_Destroy(message);
}

static void on_reconnected(natsConnection *connection, void *closure) {
    (void)connection;
    am_client *client = closure;
    pthread_mutex_lock(&client->lock);
    for (exchange *x = client->open; x != NULL; x = x->next) hear(x, CONNECTED, 0, NULL);
    pthread_mutex_unlock(&client->lock);
}

static void on_closed(natsConnection *connection, void *closure) {
    am_client *client = closure;
    const char *why = NULL;
    natsConnection_GetLastError(connection, &why);
    pthread_mutex_lock(&client->lock);
    if (!client->closed) client->why_closed = copy(why);
    client->closed = true;
    for (exchange *x = client->open; x != NULL; x = x->next) pthread_cond_signal(&x->woken);
    client->callbacks--;
    pthread_cond_broadcast(&client->empty);
    pthread_mutex_unlock(&client->lock);
}

static void on_complete(void *closure) {
    am_client *client = closure;
    pthread_mutex_lock(&client->lock);
    client->callbacks--;
    pthread_cond_broadcast(&client->empty);
    pthread_mutex_unlock(&client->lock);
}

/* The server tells of a violation to the connection alone; it is told to the calls that it concerns. */
static void on_error(natsConnection *connection, natsSubscription *subscription, natsStatus status, void *closure) {
    (void)subscription;
    if (status != NATS_NOT_PERMITTED) return;
    am_client *client = closure;
    const char *words = NULL;
    natsConnection_GetLastError(connection, &words);
    if (words == NULL) words = "";
    const char *quoted = strchr(words, '"');
    size_t length = quoted == NULL ? 0 : strcspn(++quoted, "\"");
    bool publish = strstr(words, "ublish") != NULL;
    pthread_mutex_lock(&client->lock);
    if (!publish && length >= strlen(client->prefix) && strncmp(quoted, client->prefix, strlen(client->prefix)) != 0) {
        pthread_mutex_unlock(&client->lock);
        return; /* another subscription of this connection */
    }
    if (!publish) client->refused = true; /* the next call tries again */
    for (exchange *x = client->open; x != NULL; x = x->next) {
        bool concerned = !publish;
        for (int at = 0; at < 3; at++) {
            const char *subject = x->subjects[at];
            concerned |= subject != NULL && strlen(subject) == length && strncmp(subject, quoted, length) == 0;
        }
        if (concerned) hear(x, REFUSED, publish && strncmp(quoted, x->subjects[0], length) != 0 ? 't' : 0, copy(words));
    }
    pthread_mutex_unlock(&client->lock);
}

/* The next news, or ELAPSED at the time `until`. Returns early with live messages in `live`, which the caller frees. */
static news *next_news(am_client *client, exchange *x, int64_t until, char **live) {
    news *one = NULL;
    struct timespec limit = {(time_t)(until / 1000), (long)(until % 1000) * 1000000};
    int code = 0;
    pthread_mutex_lock(&client->lock);
    for (;;) {
        if (x->live_count > 0) { /* before the outcome: on one subscription they have come in this order */
            *live = x->live[x->live_first];
            x->live_first = (x->live_first + 1) % BUFFER;
            x->live_count--;
            break;
        }
        if (x->first != NULL) {
            one = x->first;
            x->first = one->next;
            if (x->first == NULL) x->last = &x->first;
            break;
        }
        bool cancelled = x->cancel != NULL && x->cancel->fired;
        if (cancelled || client->closed || code == ETIMEDOUT) {
            one = must(calloc(1, sizeof *one));
            one->kind = cancelled ? CANCELLED : client->closed ? CLOSED : ELAPSED;
            one->body = one->kind == CLOSED ? copy(client->why_closed) : NULL;
            break;
        }
        code = pthread_cond_timedwait(&x->woken, &client->lock, &limit);
    }
    pthread_mutex_unlock(&client->lock);
    return one;
}

static void free_news(news *one) {
    free(one->body);
    free(one);
}

/* --- live events ---------------------------------------------------------------------------------------------------- */

typedef struct {
    double step;
    uint64_t n;
    size_t length;
} mark;

/* Turns the messages of one stream into events, in order, and knows what of them is void. */
typedef struct {
    am_on_event heard;
    void *closure;
    bool stopped;
    char *text;
    size_t length, room;
    uint64_t n;
    char *run;
    double owner, seq;
    char **over;
    size_t over_count;
    mark *marks;
    size_t mark_count, mark_room;
    mark answer;
} reader;

static void reader_free(reader *r) {
    free(r->text);
    free(r->run);
    for (size_t at = 0; at < r->over_count; at++) free(r->over[at]);
    free(r->over);
    free(r->marks);
}

static void cut(reader *r, size_t length) {
    r->length = length;
    if (r->text != NULL) r->text[length] = 0;
}

/* Forget the marks from `step` on, if `replace`, and add one. */
static void add_mark(reader *r, double step, uint64_t n, size_t length, bool replace) {
    while (replace && r->mark_count > 0 && r->marks[r->mark_count - 1].step >= step) r->mark_count--;
    if (r->mark_count == r->mark_room) {
        r->mark_room = r->mark_room * 2 + 8;
        r->marks = must(realloc(r->marks, r->mark_room * sizeof *r->marks));
    }
    r->marks[r->mark_count++] = (mark){step, n, length};
}

/* Hand over one event; takes `fields`, which get `n` and `type`. */
static void give(reader *r, cJSON *fields, am_event event) {
    event.n = ++r->n;
    cJSON_AddNumberToObject(fields, "n", (double)event.n);
    cJSON_AddStringToObject(fields, "type", event.type);
    char *json = printed(fields);
    event.json = json;
    if (!r->stopped && !r->heard(&event, r->closure)) r->stopped = true;
    free(json);
    cJSON_Delete(fields);
}

static void give_restart(reader *r, uint64_t void_from, size_t length, const cJSON *retry) {
    cJSON *fields = must(cJSON_CreateObject());
    cut(r, length);
    cJSON_AddNumberToObject(fields, "void_from", (double)void_from);
    if (cJSON_IsObject(retry)) cJSON_AddItemToObject(fields, "retry", cJSON_Duplicate(retry, true));
    give(r, fields, (am_event){.type = "restart", .void_from = void_from});
}

/* Begin with the events of a new run of the turn, perhaps the first. */
static void turn_to(reader *r, const char *run, double owner, double step) {
    r->owner = owner;
    r->seq = 0;
    if (r->run == NULL) {
        add_mark(r, step, r->n + 2, 0, true);
        r->run = copy(run);
        give(r, must(cJSON_CreateObject()), (am_event){.type = "start"});
        return;
    }
    r->over = must(realloc(r->over, (r->over_count + 1) * sizeof *r->over));
    r->over[r->over_count++] = r->run;
    r->run = copy(run);
    mark from = {step, r->n + 1, r->length};
    for (size_t at = r->mark_count; at > 0 && r->marks[at - 1].step >= step; at--) from = r->marks[at - 1];
    add_mark(r, step, r->n + 2, from.length, true);
    give_restart(r, from.n, from.length, NULL);
}

static void add_text(reader *r, const char *text) {
    size_t more = strlen(text);
    if (r->length + more + 1 > r->room) {
        r->room = (r->length + more + 1) * 2;
        r->text = must(realloc(r->text, r->room));
    }
    memcpy(r->text + r->length, text, more + 1);
    r->length += more;
}

/* Returns whether the event is part of the model's current answer. */
static bool give_content(reader *r, const char *type, cJSON *message) {
    static const char *head[] = {"v", "agent", "ref", "type", "seq", "owner", "run", "step"};
    const char *text = text_in(message, "text");
    bool is_text = strcmp(type, "text") == 0, is_thinking = strcmp(type, "thinking") == 0;
    if (is_text && cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(message, "restart"))) {
        give_restart(r, r->answer.n, r->answer.length, cJSON_GetObjectItemCaseSensitive(message, "retry"));
        return false;
    }
    cJSON *fields = must(cJSON_Duplicate(message, true));
    for (size_t at = 0; at < sizeof head / sizeof *head; at++) cJSON_DeleteItemFromObjectCaseSensitive(fields, head[at]);
    if ((is_text || is_thinking) && text != NULL) {
        if (is_text) add_text(r, text);
        give(r, fields, (am_event){.type = type, .text = text});
        return true;
    }
    if (strcmp(type, "tool_use") == 0 && text_in(message, "id") != NULL && text_in(message, "name") != NULL)
        give(r, fields, (am_event){.type = type});
    else if (strcmp(type, "tool_result") == 0 && text_in(message, "id") != NULL)
        give(r, fields, (am_event){.type = type, .text = text});
    else if (strcmp(type, "usage") == 0) {
        cJSON *usage = must(cJSON_CreateObject());
        cJSON_AddItemToObject(usage, "usage", fields);
        give(r, usage, (am_event){.type = type});
    } else
        cJSON_Delete(fields); /* `start`, or something newer than this client */
    return false;
}

static void read_live(reader *r, const char *body) {
    cJSON *message = cJSON_Parse(body); /* anybody may publish to an inbox of a known name */
    const char *type = text_in(message, "type"), *run = text_in(message, "run");
    const cJSON *seq = cJSON_GetObjectItemCaseSensitive(message, "seq"), *told = cJSON_GetObjectItemCaseSensitive(message, "owner");
    const cJSON *steps = cJSON_GetObjectItemCaseSensitive(message, "step");
    double owner = cJSON_IsNumber(told) ? told->valuedouble : 0, step = cJSON_IsNumber(steps) ? steps->valuedouble : 0;
    char *owners = run == NULL || *run == 0 ? format("%.0f", owner) : copy(run);
    bool passed = type == NULL || !cJSON_IsNumber(seq) || owner < r->owner; /* of a former owner, which does not know that yet */
    for (size_t at = 0; at < r->over_count && !passed; at++) passed = strcmp(r->over[at], owners) == 0;
    bool is_new = r->run == NULL || strcmp(r->run, owners) != 0;
    bool outcome = !passed && strcmp(type, "outcome") == 0;
    if (outcome && is_new && seq->valuedouble == 1) passed = true; /* its owner has not run the turn */
    if (!passed) {
        if (is_new) turn_to(r, owners, owner, step);
        if (seq->valuedouble > r->seq) {
            double missed = seq->valuedouble - r->seq - 1;
            r->seq = seq->valuedouble;
            if (missed > 0) {
                cJSON *fields = must(cJSON_CreateObject());
                cJSON_AddNumberToObject(fields, "count", missed);
                give(r, fields, (am_event){.type = "missed", .count = (uint64_t)missed});
            }
            if (strcmp(type, "handover") == 0) /* all that was sent holds: the next node goes on behind it */
                add_mark(r, step, r->n + 1, r->length, true);
            else if (!outcome) {
                /* A tool's result is shown once it is durable. */
                if (r->marks[r->mark_count - 1].step != step && strcmp(type, "tool_result") != 0) add_mark(r, step, r->n + 1, r->length, false);
                if (!give_content(r, type, message)) r->answer = (mark){0, r->n + 1, r->length};
            }
        }
    }
    free(owners);
    cJSON_Delete(message);
}

/* --- conversations -------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    const char *value; /* NULL: it is left out */
} header;

/* What is said in a conversation. */
typedef struct {
    am_client *client;
    const am_wait *wait;
    const char *agent;
    bool asks;    /* an ask or a stream; else a request with one reply */
    bool repeats; /* may be sent again though it may have arrived */
    bool once;    /* has an id, and is stored once for as long as the mesh knows that */
    bool control;
    char *subject, *tell, *poll;
    const void *body;
    size_t length;
    header headers[MAX_HEADERS];
    const char *id, *mesh_key;
    bool no_tell, no_poll;
    reader *reader;
    am_result *result;
} talk;

typedef enum { GO_ON, DONE, AGAIN, NONE_SERVES } verdict;

static char *address(const am_client *client, const exchange *x, const char *about) {
    return format("%s%llu%s", client->prefix, (unsigned long long)x->token, about);
}

static bool publish(talk *t, exchange *x, const char *subject, const header *headers, const void *body, size_t length, const char *about,
                    const char *reply_to) {
    am_client *client = t->client;
    am_error *error = &t->result->error;
    long long limit = natsConnection_GetMaxPayload(client->connection);
    char *reply = address(client, x, about), *stream_to = t->reader != NULL && headers != NULL ? address(client, x, "l") : NULL;
    pthread_mutex_lock(&client->lock);
    for (int at = 0; at < 3; at++)
        if (x->subjects[at] == NULL || x->subjects[at] == subject) {
            x->subjects[at] = subject;
            break;
        }
    pthread_mutex_unlock(&client->lock);
    natsMsg *message = NULL;
    natsStatus status = (long long)length > limit ? NATS_MAX_PAYLOAD : natsMsg_Create(&message, subject, reply, body, (int)length);
    for (const header *one = headers; status == NATS_OK && one != NULL && one->name != NULL; one++)
        if (one->value != NULL) status = natsMsgHeader_Set(message, one->name, one->value);
    if (status == NATS_OK && stream_to != NULL) status = natsMsgHeader_Set(message, "Mesh-Stream-To", stream_to);
    if (status == NATS_OK && reply_to != NULL) status = natsMsgHeader_Set(message, "Mesh-Reply-To", reply_to);
    if (status == NATS_OK) status = natsConnection_PublishMsg(client->connection, message);
    natsMsg_Destroy(message);
    free(reply);
    free(stream_to);
    if (status == NATS_MAX_PAYLOAD)
        set_error(error, AM_TOO_LARGE, format("the message has %zu bytes and its headers, the server takes %lld", length, limit),
                  format("{\"size\":%zu,\"limit\":%lld}", length, limit));
    else if (status == NATS_INVALID_ARG || status == NATS_INVALID_SUBJECT)
        set_error(error, AM_BAD_REQUEST, format("it cannot be sent: %s", natsStatus_GetText(status)), NULL);
    return error->code == NULL; /* whatever else went wrong: it is sent again, or the connection closes */
}

/* Send, for the first time or again. `doubt`: it was sent before, and may have arrived. */
static bool send_talk(talk *t, exchange *x, bool doubt) {
    if (!t->asks) return publish(t, x, t->subject, t->headers, t->body, t->length, "", NULL);
    if (t->result->ref != NULL) {
        if (t->no_poll) return true;
        header headers[] = {{"Mesh-Key", t->mesh_key}, {NULL, NULL}};
        char *body = format("{\"ref\":\"%s\"}", t->result->ref);
        reader *kept = t->reader;
        t->reader = NULL; /* a poll streams nothing */
        bool sent = publish(t, x, t->poll, headers, body, strlen(body), "p", NULL);
        t->reader = kept;
        free(body);
        return sent;
    }
    if (!doubt || t->no_tell) return publish(t, x, t->subject, t->headers, t->body, t->length, "", NULL);
    char *reply_to = address(t->client, x, "");
    bool sent = publish(t, x, t->tell, t->headers, t->body, t->length, "t", reply_to);
    free(reply_to);
    return sent;
}

/* An error in a reply: may the request be sent again? `error` is filled in any case. */
static verdict judge(talk *t, const cJSON *told, bool may_repeat, bool *uncertain) {
    const char *code = text_in(told, "code"), *message = text_in(told, "message");
    const cJSON *details = cJSON_GetObjectItemCaseSensitive(told, "details");
    set_error(&t->result->error, code == NULL ? "error" : code, copy(message == NULL ? "" : message), cJSON_IsObject(details) ? printed(details) : NULL);
    *uncertain = true_in(details, "uncertain");
    if (true_in(details, "nobody")) return NONE_SERVES;
    bool passing = code != NULL && (strcmp(code, AM_UNAVAILABLE) == 0 || strcmp(code, "no_leader") == 0);
    return passing && may_repeat && (t->repeats || !*uncertain) ? AGAIN : DONE;
}

static verdict take_outcome(talk *t, const cJSON *outcome, bool *uncertain) {
    const char *id = text_in(outcome, "msg_id"), *ref = text_in(outcome, "ref"), *text = text_in(outcome, "text");
    if (id != NULL && strncmp(id, t->id, 256) != 0) return GO_ON; /* of another message: mail was put back to an older state */
    bool known = ref != NULL && *ref != 0;
    if (known) {
        free(t->result->ref);
        t->result->ref = copy(ref);
    }
    if (!true_in(outcome, "ok")) {
        /* Without a ref it is the mesh's word that it could not take the prompt. */
        verdict found = judge(t, cJSON_GetObjectItemCaseSensitive(outcome, "error"), !known, uncertain);
        if (found != DONE) return found;
    } else
        t->result->text = copy(text == NULL ? "" : text);
    t->result->json = printed(outcome);
    return DONE;
}

static verdict take(talk *t, const news *one, bool *uncertain) {
    cJSON *reply = cJSON_Parse(one->body);
    const cJSON *error = cJSON_GetObjectItemCaseSensitive(reply, "error");
    am_result *result = t->result;
    verdict found = GO_ON;
    if (!cJSON_IsObject(reply)) {
        set_error(&result->error, AM_UNAVAILABLE, copy("a reply is none of the mesh's"), copy("{\"uncertain\":true}"));
        *uncertain = true;
        found = t->repeats ? AGAIN : DONE;
    } else if (t->asks && one->about == 0)
        found = take_outcome(t, reply, uncertain);
    else if (one->about == 'p') {
        const cJSON *outcome = cJSON_GetObjectItemCaseSensitive(reply, "outcome");
        if (outcome != NULL) found = take_outcome(t, outcome, uncertain);
    } else if (error != NULL)
        found = judge(t, error, true, uncertain);
    else {
        const char *ref = text_in(reply, "ref");
        free(result->ref);
        result->ref = copy(ref);
        if (!t->asks) {
            result->json = copy(one->body);
            result->status = copy(text_in(reply, "status"));
            result->due = copy(text_in(reply, "due"));
            result->duplicate = true_in(reply, "duplicate");
            static const char *flags[] = {"interrupted", "cancelled", "resumed", "set"};
            for (size_t at = 0; at < sizeof flags / sizeof *flags; at++) result->done |= true_in(reply, flags[at]);
            found = DONE;
        }
    }
    cJSON_Delete(reply);
    return found;
}

static void say_uncertain(am_error *error) {
    set_error(error, AM_UNAVAILABLE,
              copy("the connection broke before an answer came, and this cannot be sent again without doing it twice; look whether it was done"),
              copy("{\"uncertain\":true}"));
}

static bool connected(const talk *t) { return natsConnection_Status(t->client->connection) == NATS_CONN_STATUS_CONNECTED; }

static void say_gave_up(talk *t, int64_t timeout, bool sent, bool is_connected) {
    am_result *result = t->result;
    if (sent || result->ref != NULL)
        set_error(&result->error, AM_ASK_TIMEOUT, format("no answer within %lld ms; what was sent goes on", (long long)timeout),
                  result->ref == NULL ? NULL : format("{\"ref\":\"%s\"}", result->ref));
    else if (!is_connected)
        set_error(&result->error, AM_UNAVAILABLE, format("no connection to a NATS server for %lld ms; try again", (long long)timeout), NULL);
    else if (result->error.code == NULL)
        set_error(&result->error, AM_UNAVAILABLE, copy("no process of the mesh serves this now, or nobody runs the agent; try again"), NULL);
}

static bool is_absent(talk *t);

/*
 * Hold a conversation. What is uncertain is counted: how many messages may have arrived without an answer. Only if it is none,
 * "unavailable" says the truth at the end; else the caller has to know that the request may be carried out.
 */
static void converse(talk *t, exchange *x, int64_t timeout) {
    am_error *error = &t->result->error;
    int64_t began = now_ms(), end = began + timeout, due = began, silence = SILENCE_FIRST, pause = PAUSE_FIRST;
    int64_t doubt_since = -1, nobody_since = -1;
    int open = 0;
    for (;;) {
        int64_t now = now_ms();
        bool on = connected(t), uncertain = false;
        if (now >= end) {
            say_gave_up(t, timeout, open > 0, on);
            return;
        }
        if (now >= due && on) {
            if (t->once && doubt_since >= 0 && now - doubt_since > WINDOW && t->result->ref == NULL) {
                say_uncertain(error);
                return;
            }
            am_error_clear(error);
            if (!send_talk(t, x, open > 0)) return;
            open++;
            if (doubt_since < 0) doubt_since = now;
            due = t->repeats ? now + silence : end;
            silence = silence * 2 < SILENCE_MOST ? silence * 2 : SILENCE_MOST;
        }
        int64_t until = on && due < end ? due : end;
        char *live = NULL;
        news *one = next_news(t->client, x, until, &live);
        if (live != NULL) {
            read_live(t->reader, live);
            free(live);
            if (t->reader->stopped) {
                set_error(error, AM_CANCELLED_LOCAL, copy("the callback ended the wait"), NULL);
                return;
            }
            continue;
        }
        verdict found = GO_ON;
        switch (one->kind) {
        case ELAPSED:
            break;
        case CANCELLED:
            set_error(error, AM_CANCELLED_LOCAL, copy("the call was cancelled"), NULL);
            found = DONE;
            break;
        case CLOSED:
            set_error(error, AM_UNAVAILABLE, format("the connection is closed: %s", one->body == NULL ? "by the caller" : one->body), NULL);
            found = DONE;
            break;
        case CONNECTED:
            due = 0;
            silence = SILENCE_FIRST;
            if (open > 0 && !t->repeats) {
                say_uncertain(error);
                found = DONE;
            }
            break;
        case REFUSED:
            if (t->asks && one->about == 't') { /* it does without: the ask itself was permitted */
                if (t->result->ref == NULL)
                    t->no_tell = true;
                else
                    t->no_poll = true;
                due = 0;
            } else {
                set_error(error, AM_NOT_PERMITTED, format("the NATS server refuses it: %s", one->body), NULL);
                found = DONE;
            }
            break;
        case NOBODY:
            found = NONE_SERVES;
            break;
        case REPLY:
            found = take(t, one, &uncertain);
            if (found == GO_ON || found == DONE) nobody_since = -1;
            break;
        }
        free_news(one);
        if (found == DONE) return;
        if (found == GO_ON) continue;
        now = now_ms();
        if (!uncertain && open > 0 && --open == 0) doubt_since = -1;
        if (found == NONE_SERVES) {
            if (nobody_since < 0) nobody_since = now;
            set_error(error, AM_UNAVAILABLE, copy("no process of the mesh serves this now, or nobody runs the agent; try again"), NULL);
            if (t->control && now - nobody_since >= ABSENT && is_absent(t)) return;
        }
        due = now_ms() + pause;
        pause = pause * 2 < PAUSE_MOST ? pause * 2 : PAUSE_MOST;
    }
}

/* Begin a conversation, hold it, and forget it. */
static void hold(talk *t, int64_t timeout) {
    am_client *client = t->client;
    exchange x = {.last = &x.first, .cancel = t->wait == NULL ? NULL : t->wait->cancel, .subjects = {t->subject}};
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&x.woken, &attributes);
    pthread_condattr_destroy(&attributes);
    if (t->reader != NULL) x.live = must(calloc(BUFFER, sizeof *x.live));
    natsStatus status = NATS_OK;
    natsSubscription *old = NULL;
    pthread_mutex_lock(&client->lock);
    if (client->refused) {
        old = client->subscription;
        client->subscription = NULL;
        client->refused = false;
    }
    if (client->subscription == NULL && !client->closed) {
        char *all = format("%s*", client->prefix);
        status = natsConnection_Subscribe(&client->subscription, client->connection, all, on_message, client);
        if (status == NATS_OK) {
            natsSubscription_SetPendingLimits(client->subscription, -1, -1); /* what waits is bounded above */
            if (natsSubscription_SetOnCompleteCB(client->subscription, on_complete, client) == NATS_OK) client->callbacks++;
        }
        free(all);
    }
    x.token = ++client->count;
    x.next = client->open;
    client->open = &x;
    pthread_mutex_unlock(&client->lock);
    natsSubscription_Destroy(old);
    if (status != NATS_OK)
        set_error(&t->result->error, AM_UNAVAILABLE, format("no inbox: %s", natsStatus_GetText(status)), NULL);
    else
        converse(t, &x, t->wait != NULL && t->wait->timeout_ms > 0 ? t->wait->timeout_ms : timeout);
    pthread_mutex_lock(&client->lock);
    exchange **link = &client->open;
    while (*link != &x) link = &(*link)->next;
    *link = x.next;
    if (client->open == NULL) pthread_cond_broadcast(&client->empty);
    pthread_mutex_unlock(&client->lock);
    while (x.first != NULL) {
        news *one = x.first;
        x.first = one->next;
        free_news(one);
    }
    for (; x.live_count > 0; x.live_count--, x.live_first = (x.live_first + 1) % BUFFER) free(x.live[x.live_first]);
    free(x.live);
    pthread_cond_destroy(&x.woken);
}

/*
 * Whether no agent has this name; the error is set then. A caller cannot read the registry, but the mesh checks the name before it
 * looks at a prompt: an empty one, which is never stored, is `not_found` then, and else `bad_request`.
 */
static bool is_absent(talk *t) {
    am_wait wait = {1000, t->wait == NULL ? NULL : t->wait->cancel};
    talk probe = {.client = t->client, .wait = &wait, .agent = t->agent, .repeats = true, .body = "", .result = must(calloc(1, sizeof *probe.result))};
    probe.subject = format("%s.tell.%s", t->client->root, t->agent);
    hold(&probe, 1000);
    bool absent = probe.result->error.code != NULL && strcmp(probe.result->error.code, AM_NOT_FOUND) == 0;
    if (absent) {
        am_error_clear(&t->result->error);
        t->result->error = probe.result->error;
        probe.result->error = (am_error){0};
    }
    am_result_free(probe.result);
    free(probe.subject);
    return absent;
}

/* --- requests ------------------------------------------------------------------------------------------------------- */

static bool is_name(const char *name) {
    size_t length = strlen(name), token = 0, tokens = 1;
    for (const char *at = name; *at != 0; at++) {
        if (*at == '.') {
            if (token == 0) return false;
            token = 0;
            tokens++;
        } else if (!(isalnum((unsigned char)*at) || *at == '_' || *at == '-') || (unsigned char)*at > 126 || ++token > 64)
            return false;
    }
    return token > 0 && tokens <= 8 && length <= 128;
}

/* Printable ASCII; blanks around it would be another id in languages that trim headers. */
static bool is_key(const char *key) {
    size_t length = strlen(key);
    for (size_t at = 0; at < length; at++)
        if (key[at] < 0x20 || key[at] > 0x7e) return false;
    return length > 0 && key[0] != ' ' && key[length - 1] != ' ';
}

static void add_header(talk *t, const char *name, const char *value) {
    for (size_t at = 0; at < MAX_HEADERS - 1; at++)
        if (t->headers[at].name == NULL) {
            t->headers[at] = (header){name, value};
            return;
        }
}

typedef struct {
    char *names[3], *values[3];
} trace_headers;

static void take_header(void *carrier, const char *name, const char *value) {
    static const char *known[] = {"traceparent", "tracestate", "baggage"};
    trace_headers *trace = carrier;
    for (int at = 0; at < 3; at++)
        if (strcmp(name, known[at]) == 0) {
            free(trace->values[at]);
            trace->values[at] = copy(value);
        }
}

static talk begin(am_client *client, const char *agent, const am_wait *wait) {
    return (talk){.client = client, .wait = wait, .agent = agent, .repeats = true, .body = "", .result = must(calloc(1, sizeof(am_result)))};
}

static am_result *finish(talk *t) {
    free(t->subject);
    free(t->tell);
    free(t->poll);
    return t->result;
}

static bool checked(talk *t) {
    if (is_name(t->agent)) return true;
    set_error(&t->result->error, AM_BAD_REQUEST, format("'%s' is no agent's name: 1 to 8 tokens [A-Za-z0-9_-] joined by dots", t->agent), NULL);
    return false;
}

/* The JSON form of a prompt; NULL if the metadata is no JSON. */
static char *prompt_json(const am_prompt *prompt) {
    cJSON *body = must(cJSON_CreateObject());
    cJSON_AddStringToObject(body, "prompt", prompt->text == NULL ? "" : prompt->text);
    cJSON *metadata = prompt->metadata_json == NULL ? NULL : cJSON_Parse(prompt->metadata_json);
    bool wrong = prompt->metadata_json != NULL && metadata == NULL;
    if (metadata != NULL) cJSON_AddItemToObject(body, "metadata", metadata);
    cJSON *files = prompt->attachment_count > 0 ? cJSON_AddArrayToObject(body, "attachments") : NULL;
    for (size_t at = 0; at < prompt->attachment_count; at++) {
        const am_attachment *given = &prompt->attachments[at];
        cJSON *file = must(cJSON_CreateObject());
        char *content = base64(given->content, given->length);
        cJSON_AddStringToObject(file, "filename", given->filename);
        cJSON_AddStringToObject(file, "content", content);
        free(content);
        cJSON_AddItemToArray(files, file);
    }
    char *made = wrong ? NULL : printed(body);
    cJSON_Delete(body);
    return made;
}

/* A random id, of nats.c's own generator. */
static char *random_id(void) {
    natsInbox *inbox = NULL;
    natsInbox_Create(&inbox);
    const char *dot = inbox == NULL ? NULL : strrchr(inbox, '.');
    char *made = copy(must((void *)(dot == NULL ? NULL : dot + 1)));
    natsInbox_Destroy(inbox);
    return made;
}

/* Send mail: an ask, a stream, a prompt that is told, or an event. */
static am_result *mail(am_client *client, const char *way, const char *agent, const am_prompt *prompt, const am_wait *wait, reader *r, bool asks,
                       bool event) {
    talk t = begin(client, agent, wait);
    if (prompt->key != NULL && !is_key(prompt->key))
        set_error(&t.result->error, AM_BAD_REQUEST, copy("a key is printable ASCII without blanks around it"), NULL);
    else if (checked(&t)) {
        trace_headers trace = {{NULL}, {copy(prompt->traceparent), copy(prompt->tracestate), copy(prompt->baggage)}};
        if (client->settings.inject != NULL && prompt->traceparent == NULL) client->settings.inject(&trace, take_header, client->settings.closure);
        char *random = prompt->key == NULL ? random_id() : NULL;
        char *id = format("%s.%s", agent, random == NULL ? prompt->key : random);
        char *expires = prompt->expires_ms > 0 ? format("%.3f", (double)prompt->expires_ms / 1000) : NULL;
        bool shaped = prompt->bytes == NULL && !event &&
                      (prompt->metadata_json != NULL || prompt->attachment_count > 0 || (prompt->text != NULL && prompt->text[0] == '{'));
        char *json = shaped ? prompt_json(prompt) : NULL;
        const char *text = json != NULL ? json : prompt->text == NULL ? "" : prompt->text;
        t.asks = asks, t.once = true, t.reader = r, t.id = id, t.mesh_key = prompt->mesh_key;
        t.body = prompt->bytes != NULL ? prompt->bytes : text;
        t.length = prompt->bytes != NULL ? prompt->length : strlen(text);
        t.subject = format("%s.%s.%s", client->root, way, agent);
        t.tell = format("%s.tell.%s", client->root, agent);
        t.poll = format("%s.poll.%s", client->root, agent);
        add_header(&t, "Nats-Msg-Id", id);
        add_header(&t, "Mesh-Timeout", expires);
        add_header(&t, "Mesh-End-By", prompt->end_by);
        add_header(&t, "Mesh-Budget", prompt->budget_json);
        add_header(&t, "Mesh-Key", prompt->mesh_key);
        add_header(&t, "Content-Type", shaped || event ? "application/json" : NULL);
        add_header(&t, "traceparent", trace.values[0]);
        add_header(&t, "tracestate", trace.values[1]);
        add_header(&t, "baggage", trace.values[2]);
        if (shaped && json == NULL)
            set_error(&t.result->error, AM_BAD_REQUEST, copy("the metadata is no JSON"), NULL);
        else
            hold(&t, asks ? 600000 : 30000);
        for (int at = 0; at < 3; at++) free(trace.values[at]);
        free(random);
        free(id);
        free(expires);
        free(json);
    }
    return finish(&t);
}

am_result *am_ask(am_client *client, const char *agent, const am_prompt *prompt, const am_wait *wait) {
    return mail(client, "ask", agent, prompt, wait, NULL, true, false);
}

am_result *am_tell(am_client *client, const char *agent, const am_prompt *prompt, const am_wait *wait) {
    return mail(client, "tell", agent, prompt, wait, NULL, false, false);
}

am_result *am_stream(am_client *client, const char *agent, const am_prompt *prompt, const am_wait *wait, am_on_event heard, void *closure) {
    reader r = {.heard = heard, .closure = closure, .answer = {0, 1, 0}};
    am_result *result = mail(client, "ask", agent, prompt, wait, &r, true, false);
    result->shown = copy(r.text == NULL ? "" : r.text);
    reader_free(&r);
    return result;
}

am_result *am_notify(am_client *client, const char *agent, const char *event_json, const am_prompt *options, const am_wait *wait) {
    am_prompt event = {.text = event_json};
    if (options != NULL) {
        event.key = options->key, event.expires_ms = options->expires_ms;
        event.traceparent = options->traceparent, event.tracestate = options->tracestate, event.baggage = options->baggage;
    }
    return mail(client, "event-to", agent, &event, wait, NULL, false, true);
}

am_result *am_poll(am_client *client, const char *agent, const char *ref, const char *mesh_key, const am_wait *wait) {
    talk t = begin(client, agent, wait);
    cJSON *body = must(cJSON_CreateObject());
    cJSON_AddStringToObject(body, "ref", ref);
    char *json = printed(body);
    t.body = json, t.length = strlen(json);
    add_header(&t, "Mesh-Key", mesh_key);
    if (checked(&t)) {
        t.subject = format("%s.poll.%s", client->root, agent);
        hold(&t, 30000);
    }
    am_result *result = finish(&t);
    if (result->status != NULL && strcmp(result->status, "completed") == 0) {
        cJSON *reply = cJSON_Parse(result->json);
        free(result->json);
        result->json = printed(cJSON_GetObjectItemCaseSensitive(reply, "outcome"));
        cJSON_Delete(reply);
    }
    if (result->ref == NULL) result->ref = copy(ref);
    cJSON_Delete(body);
    free(json);
    return result;
}

/* Ask the agent's owner. Takes `body`. */
static am_result *control(am_client *client, const char *operation, const char *agent, cJSON *body, bool repeats, const char *mesh_key,
                          const am_wait *wait) {
    talk t = begin(client, agent, wait);
    char *json = printed(body);
    t.body = json, t.length = strlen(json), t.repeats = repeats, t.control = true;
    add_header(&t, "Mesh-Key", mesh_key);
    if (checked(&t)) {
        t.subject = format("%s.live.control-%s.%s", client->root, operation, agent);
        hold(&t, 10000);
    }
    cJSON_Delete(body);
    free(json);
    return finish(&t);
}

static cJSON *fields(const char *name, const char *value) {
    cJSON *made = must(cJSON_CreateObject());
    if (value != NULL) cJSON_AddStringToObject(made, name, value);
    return made;
}

am_result *am_status(am_client *client, const char *agent, bool content, const am_wait *wait) {
    return control(client, content ? "state" : "status", agent, fields("", NULL), true, NULL, wait);
}

am_result *am_interrupt(am_client *client, const char *agent, const char *ref, const am_wait *wait) {
    return control(client, "interrupt", agent, fields("ref", ref), ref != NULL, NULL, wait);
}

am_result *am_cancel_request(am_client *client, const char *agent, const char *ref, bool tree, const char *mesh_key, const am_wait *wait) {
    cJSON *body = fields("ref", ref);
    if (tree) cJSON_AddTrueToObject(body, "tree");
    return control(client, "cancel", agent, body, true, mesh_key, wait);
}

am_result *am_resume(am_client *client, const char *agent, const am_wait *wait) { return control(client, "resume", agent, fields("", NULL), true, NULL, wait); }

am_result *am_set_timer(am_client *client, const char *agent, const char *timer, const char *event_json, const char *at, double after_s, double every_s,
                        const am_wait *wait) {
    cJSON *body = fields("id", timer);
    if (event_json != NULL) cJSON_AddRawToObject(body, "event", event_json);
    if (at != NULL)
        cJSON_AddStringToObject(body, "at", at);
    else
        cJSON_AddNumberToObject(body, "after_s", after_s);
    if (every_s > 0) cJSON_AddNumberToObject(body, "every_s", every_s);
    return control(client, "set_timer", agent, body, at != NULL, NULL, wait);
}

am_result *am_cancel_timer(am_client *client, const char *agent, const char *timer, const am_wait *wait) {
    return control(client, "cancel_timer", agent, fields("id", timer), true, NULL, wait);
}

/* --- the client ----------------------------------------------------------------------------------------------------- */

static void free_client(am_client *client) {
    natsSubscription_Destroy(client->subscription);
    natsConnection_Destroy(client->connection);
    pthread_mutex_destroy(&client->lock);
    pthread_cond_destroy(&client->empty);
    free(client->root);
    free(client->inbox);
    free(client->prefix);
    free(client->why_closed);
    free(client);
}

bool am_connect(am_client **client, natsOptions *options, const am_settings *settings, am_error *error) {
    am_client *made = must(calloc(1, sizeof *made));
    if (settings != NULL) made->settings = *settings;
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->empty, NULL);
    made->root = copy(made->settings.root == NULL ? "mesh" : made->settings.root);
    made->inbox = copy(made->settings.inbox_prefix == NULL ? "_INBOX" : made->settings.inbox_prefix);
    char *random = random_id();
    made->prefix = format("%s.%s.", made->inbox, random);
    free(random);
    natsOptions_SetMaxReconnect(options, -1);
    natsOptions_SetReconnectWait(options, 250);
    natsOptions_SetSendAsap(options, true); /* nothing waits for a full buffer: an ask is one small message */
    natsOptions_SetErrorHandler(options, on_error, made);
    natsOptions_SetReconnectedCB(options, on_reconnected, made);
    natsOptions_SetClosedCB(options, on_closed, made);
    natsStatus status = natsConnection_Connect(&made->connection, options);
    if (status != NATS_OK) {
        bool denied = status == NATS_CONNECTION_AUTH_FAILED || status == NATS_NOT_PERMITTED;
        const char *words = nats_GetLastError(NULL);
        set_error(error, denied ? AM_NOT_PERMITTED : AM_UNAVAILABLE,
                  format("no connection to a NATS server: %s", words == NULL || *words == 0 ? natsStatus_GetText(status) : words), NULL);
        free_client(made);
        return false;
    }
    pthread_mutex_lock(&made->lock);
    made->callbacks++;
    pthread_mutex_unlock(&made->lock);
    *client = made;
    return true;
}

void am_close(am_client *client) {
    if (client == NULL) return;
    pthread_mutex_lock(&client->lock);
    client->closed = true;
    for (exchange *x = client->open; x != NULL; x = x->next) pthread_cond_signal(&x->woken);
    while (client->open != NULL) pthread_cond_wait(&client->empty, &client->lock);
    pthread_mutex_unlock(&client->lock);
    natsConnection_Close(client->connection);
    natsSubscription_Destroy(client->subscription);
    client->subscription = NULL;
    pthread_mutex_lock(&client->lock);
    while (client->callbacks > 0) pthread_cond_wait(&client->empty, &client->lock);
    pthread_mutex_unlock(&client->lock);
    free_client(client);
}

am_cancel *am_cancel_create(am_client *client) {
    am_cancel *made = must(calloc(1, sizeof *made));
    made->client = client;
    return made;
}

void am_cancel_fire(am_cancel *cancel) {
    pthread_mutex_lock(&cancel->client->lock);
    cancel->fired = true;
    for (exchange *x = cancel->client->open; x != NULL; x = x->next)
        if (x->cancel == cancel) pthread_cond_signal(&x->woken);
    pthread_mutex_unlock(&cancel->client->lock);
}

void am_cancel_destroy(am_cancel *cancel) { free(cancel); }

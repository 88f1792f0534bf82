/*
 * An ask with one caller, by the library and by hand: the same messages on nats.c, in turns. `bench AGENT [ROUNDS]` prints a JSON
 * line for each pair, in microseconds.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../agentmesh.h"

static long us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static long by_hand(natsConnection *connection, const char *agent) {
    static unsigned long count;
    char subject[160], id[200];
    long began = us();
    snprintf(subject, sizeof subject, "mesh.ask.%s", agent);
    snprintf(id, sizeof id, "%s.by-hand-%ld-%lu", agent, began, count++);
    natsMsg *request = NULL, *reply = NULL;
    natsMsg_Create(&request, subject, NULL, "hello", 5);
    natsMsgHeader_Set(request, "Nats-Msg-Id", id);
    if (natsConnection_RequestMsg(&reply, connection, request, 10000) != NATS_OK) exit(1);
    natsMsg_Destroy(request);
    natsMsg_Destroy(reply);
    return us() - began;
}

static long by_library(am_client *mesh, const char *agent) {
    am_prompt prompt = {.text = "hello"};
    am_wait wait = {.timeout_ms = 10000};
    long began = us();
    am_result *answer = am_ask(mesh, agent, &prompt, &wait);
    if (answer->error.code != NULL) exit(1);
    am_result_free(answer);
    return us() - began;
}

int main(int count, char **arguments) {
    const char *agent = count > 1 ? arguments[1] : "bench", *url = getenv("MESH_NATS_URL");
    if (url == NULL) url = getenv("MESH_CONFORMANCE_URL");
    natsOptions *options = NULL, *own = NULL;
    natsConnection *connection = NULL;
    am_client *mesh = NULL;
    am_error error = {0};
    natsOptions_Create(&options);
    natsOptions_SetURL(options, url == NULL ? NATS_DEFAULT_URL : url);
    natsOptions_Create(&own);
    natsOptions_SetURL(own, url == NULL ? NATS_DEFAULT_URL : url);
    natsOptions_SetSendAsap(own, true);
    if (natsConnection_Connect(&connection, own) != NATS_OK || !am_connect(&mesh, options, NULL, &error)) return 1;
    for (int warm = 0; warm < 50; warm++) by_hand(connection, agent), by_library(mesh, agent);
    for (int round = 0; round < (count > 2 ? atoi(arguments[2]) : 200); round++) {
        long hand = round % 2 ? by_hand(connection, agent) : 0;
        long library = by_library(mesh, agent);
        if (round % 2 == 0) hand = by_hand(connection, agent);
        printf("{\"hand_us\":%ld,\"library_us\":%ld}\n", hand, library);
    }
    am_close(mesh);
    natsConnection_Destroy(connection);
    natsOptions_Destroy(options);
    natsOptions_Destroy(own);
    nats_CloseAndWait(2000);
    return 0;
}

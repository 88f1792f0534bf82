/*
 * Ask an agent, and watch it answer: `ask AGENT PROMPT`. The server is MESH_NATS_URL, or the one on this machine.
 *
 *     cc -I.. ask.c ../agentmesh.c -lnats -lcjson -lpthread -o ask
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../agentmesh.h"

static bool show(const am_event *event, void *closure) {
    (void)closure;
    if (strcmp(event->type, "text") == 0) fputs(event->text, stdout);
    if (strcmp(event->type, "restart") == 0) printf("\n[void from %llu]\n", (unsigned long long)event->void_from);
    fflush(stdout);
    return true;
}

int main(int count, char **arguments) {
    const char *url = getenv("MESH_NATS_URL");
    natsOptions *options = NULL;
    am_client *mesh = NULL;
    am_error error = {0};
    int code = 1;
    natsOptions_Create(&options);
    natsOptions_SetURL(options, url == NULL ? NATS_DEFAULT_URL : url);
    if (am_connect(&mesh, options, NULL, &error)) {
        am_prompt prompt = {.text = count > 2 ? arguments[2] : "Say hello"};
        am_wait wait = {.timeout_ms = 120000};
        am_result *answer = am_stream(mesh, count > 1 ? arguments[1] : "coder", &prompt, &wait, show, NULL);
        code = answer->error.code != NULL;
        if (code)
            fprintf(stderr, "%s: %s\n", answer->error.code, answer->error.message);
        else
            printf("\nrequest %s is answered\n", answer->ref);
        am_result_free(answer);
        am_close(mesh);
    } else
        fprintf(stderr, "%s: %s\n", error.code, error.message);
    am_error_clear(&error);
    natsOptions_Destroy(options);
    nats_CloseAndWait(2000);
    return code;
}

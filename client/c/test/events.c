/* What a turn's live events become, and what cannot be sent. The source is included, so that its static functions can be tested. */
#include "../agentmesh.c"

static char log_[8192];
static int failed;

static bool note(const am_event *event, void *closure) {
    (void)closure;
    size_t at = strlen(log_);
    snprintf(log_ + at, sizeof log_ - at, "%llu %s", (unsigned long long)event->n, event->type);
    at = strlen(log_);
    if (event->void_from > 0) snprintf(log_ + at, sizeof log_ - at, " from %llu", (unsigned long long)event->void_from);
    if (event->count > 0) snprintf(log_ + at, sizeof log_ - at, " %llu", (unsigned long long)event->count);
    strcat(log_, "; ");
    return true;
}

static void expect(const char *what, const char *found, const char *expected) {
    if (strcmp(found, expected) == 0) return;
    printf("%s: found    %s\n%*s  expected %s\n", what, found, (int)strlen(what), "", expected);
    failed++;
}

static void check(const char *what, const char *const *bodies, const char *events, const char *text) {
    reader r = {.heard = note, .answer = {0, 1, 0}};
    *log_ = 0;
    for (; *bodies != NULL; bodies++) read_live(&r, *bodies);
    expect(what, log_, events);
    expect(what, r.text == NULL ? "" : r.text, text);
    reader_free(&r);
}

#define HEAD(run, owner, seq, step) "{\"v\":1,\"run\":\"" run "\",\"owner\":" owner ",\"seq\":" seq ",\"step\":" step ",\"type\":"

int main(void) {
    check("a node dies",
          (const char *[]){HEAD("a", "1", "1", "0") "\"start\"}", HEAD("a", "1", "2", "0") "\"text\",\"text\":\"kept \"}",
                           HEAD("a", "1", "3", "0") "\"tool_use\",\"id\":\"t\",\"name\":\"look\",\"input\":{}}",
                           HEAD("a", "1", "4", "1") "\"tool_result\",\"id\":\"t\",\"ok\":true,\"text\":\"seen\"}",
                           HEAD("a", "1", "5", "1") "\"text\",\"text\":\"void\"}", HEAD("b", "2", "1", "1") "\"start\"}",
                           HEAD("a", "1", "6", "1") "\"text\",\"text\":\"late\"}", HEAD("b", "2", "2", "1") "\"text\",\"text\":\"anew\"}", NULL},
          "1 start; 2 text; 3 tool_use; 4 tool_result; 5 text; 6 restart from 5; 7 text; ", "kept anew");
    check("a hand-over",
          (const char *[]){HEAD("a", "1", "1", "0") "\"start\"}", HEAD("a", "1", "2", "0") "\"text\",\"text\":\"one \"}",
                           HEAD("a", "1", "3", "1") "\"handover\"}", HEAD("b", "2", "1", "1") "\"start\"}",
                           HEAD("b", "2", "2", "1") "\"text\",\"text\":\"two\"}", NULL},
          "1 start; 2 text; 3 restart from 3; 4 text; ", "one two");
    check("an answer that broke off",
          (const char *[]){HEAD("a", "1", "1", "0") "\"start\"}", HEAD("a", "1", "2", "0") "\"text\",\"text\":\"half\"}",
                           HEAD("a", "1", "3", "0") "\"text\",\"text\":\"\",\"restart\":true}", HEAD("a", "1", "4", "0") "\"text\",\"text\":\"whole\"}", NULL},
          "1 start; 2 text; 3 restart from 2; 4 text; ", "whole");
    check("lost and odd ones",
          (const char *[]){"{", "[1]", "\"x\"", HEAD("a", "1", "1", "0") "\"start\"}", HEAD("a", "1", "2", "0") "\"news\"}",
                           HEAD("a", "1", "5", "0") "\"usage\",\"tokens\":3}", HEAD("a", "1", "7", "0") "\"outcome\"}", NULL},
          "1 start; 2 missed 2; 3 usage; 4 missed 1; ", "");
    char *encoded = base64((const unsigned char *)"\xff\xfe\x00z", 4);
    expect("base64", encoded, "//4Aeg==");
    free(encoded);
    expect("names", is_name("team-a.reviewer") && !is_name("a b") && !is_name("a..b") && !is_name("") && !is_name("a.b.c.d.e.f.g.h.i") ? "ok" : "wrong", "ok");
    expect("keys", is_key("job 7") && !is_key(" job") && !is_key("job ") && !is_key("") && !is_key("j\xc3\xb6") ? "ok" : "wrong", "ok");
    printf("%d passed, %d failed\n", 11 - failed, failed);
    return failed > 0;
}

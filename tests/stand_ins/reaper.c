/* Starts a program, and takes in what that leaves behind when it ends, as an init or a supervisor does. */

#include <errno.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count < 2 || prctl(PR_SET_CHILD_SUBREAPER, 1))
        return 2;
    pid_t child = fork();
    if (child == 0) {
        execv(words[1], words + 1);
        _exit(127);
    }
    for (;;)
        if (wait(NULL) < 0 && errno == ECHILD)
            return 0;
}

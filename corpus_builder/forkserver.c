/* Preloaded into a compiler, runs it once for each call in the file that ASMTRAIN_CALLS names.
 *
 * The program is loaded and linked once; each call is a fork of it, made in place of its main(). The file holds
 * strings, each ended by a NUL. A call is: file to create when it succeeded, file for its output, file for its
 * errors (each may be empty), folder to run in, number of arguments, arguments. The first call that fails ends
 * the program.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

typedef int (*main_function)(int, char **, char **);

static main_function program;

static int open_new(const char *path) { return open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666); }

static void redirect(const char *path, int to) {
    int file = *path ? open_new(path) : open("/dev/null", O_WRONLY);
    if (file < 0 || dup2(file, to) < 0) _exit(126);
}

static char *next(char **at) {
    char *word = *at;
    *at += strlen(word) + 1;
    return word;
}

static int run(const char *output, const char *errors, const char *folder, int argc, char **argv) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        redirect(output, STDOUT_FILENO);
        redirect(errors, STDERR_FILENO);
        if (chdir(folder)) _exit(126);
        exit(program(argc, argv, environ));
    }
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

static int serve(int argc, char **argv, char **envp) {
    struct stat about;
    int file = open(getenv("ASMTRAIN_CALLS"), O_RDONLY | O_CLOEXEC);
    char *calls;
    (void)argc, (void)argv, (void)envp;
    if (file < 0 || fstat(file, &about) || !(calls = malloc(about.st_size + 1))) return 126;
    if (read(file, calls, about.st_size) != about.st_size) return 126;
    close(file);
    unsetenv("LD_PRELOAD");
    unsetenv("ASMTRAIN_CALLS");
    for (char *at = calls; at < calls + about.st_size;) {
        char *done = next(&at), *output = next(&at), *errors = next(&at), *folder = next(&at);
        int count = atoi(next(&at)), made;
        char **words = calloc(count + 1, sizeof *words);
        for (int number = 0; number < count; number++) words[number] = next(&at);
        if (!run(output, errors, folder, count, words)) return 1;
        if ((made = open_new(done)) < 0) return 126;
        close(made);
        free(words);
    }
    return 0;
}

/* glibc's entry point of every program, before main(). */
int __libc_start_main(main_function main, int argc, char **argv, void (*init)(void), void (*fini)(void),
                      void (*loader_fini)(void), void *stack_end) {
    int (*real)(main_function, int, char **, void (*)(void), void (*)(void), void (*)(void), void *) =
        dlsym(RTLD_NEXT, "__libc_start_main");
    program = main;
    return real(serve, argc, argv, init, fini, loader_fini, stack_end);
}

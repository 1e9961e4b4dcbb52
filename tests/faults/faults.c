/* Makes the Nth system call that changes files fail, or kills the process there: for tests/test_accidents.py.
 *
 * Preloaded into a process (LD_PRELOAD). `faults_arm(n, error)` counts such calls from then on: the nth and all
 * after it fail with `error`, or the nth kills the process if `error` is 0. Standard streams do not count.
 * Before `faults_arm` no call fails. `faults_count()` returns the number of calls since then. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long count;
static long armed_at;
static int armed_error;

void faults_arm(long n, int error)
{
    count = 0;
    armed_at = n;
    armed_error = error;
}

long faults_count(void)
{
    return count;
}

/* Returns whether the call must fail, and sets errno in this case. */
static int fails(void)
{
    long number = ++count;
    if (armed_at == 0 || number < armed_at)
        return 0;
    if (armed_error == 0)
        kill(getpid(), SIGKILL);
    errno = armed_error;
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size)
{
    return fd > 2 && fails() ? -1 : NEXT(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    return fails() ? -1 : NEXT(pwrite64)(fd, data, size, at);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    return fails() ? -1 : NEXT(pwrite)(fd, data, size, at);
}

int ftruncate64(int fd, off64_t size)
{
    return fails() ? -1 : NEXT(ftruncate64)(fd, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size)
{
    return fails() ? errno : NEXT(posix_fallocate64)(fd, at, size);
}

int posix_fallocate(int fd, off_t at, off_t size)
{
    return fails() ? errno : NEXT(posix_fallocate)(fd, at, size);
}

int fsync(int fd)
{
    return fails() ? -1 : NEXT(fsync)(fd);
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    return fails() ? -1 : NEXT(linkat)(from, old, to, new, flags);
}

int link(const char *old, const char *new)
{
    return fails() ? -1 : NEXT(link)(old, new);
}

int rename(const char *old, const char *new)
{
    return fails() ? -1 : NEXT(rename)(old, new);
}

int unlink(const char *path)
{
    return fails() ? -1 : NEXT(unlink)(path);
}

static int opens(const char *path, int flags, mode_t mode)
{
    if ((flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) && fails())
        return -1;
    return NEXT(open64)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return opens(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return opens(path, flags, mode);
}

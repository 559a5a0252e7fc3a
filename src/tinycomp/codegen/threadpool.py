"""The thread pool that runs parallel loops, written as LLVM IR.

One pool serves the whole process. A loop's iterations are divided into `rt.num_threads` contiguous
ranges; the caller runs range 0 and workers the others. Results do not depend on how many workers
there are: where no worker can be had (the pool is busy with another caller's loop, or a thread
could not be made) the caller runs the ranges itself, under the same thread numbers.

    void tinycomp_parallel_for(ptr rt, ptr f, ptr env, i64 extent)   f(env, begin, end, thread)
    ptr  tinycomp_pool_create()
    void tinycomp_pool_destroy(ptr pool)         no loop may be running
    void tinycomp_pool_enter(ptr rt)             once per model call: notices a fork

A job is announced by one 64-bit word: a counter in the low half, the number of threads in the
high half. A worker that takes part decrements `pending` last, and the caller waits for that; a
worker that takes no part reads nothing but the word. So the other fields cannot change under a
reader. Waiting threads spin briefly, then sleep on a futex. The lock holds the process id of its
owner, so that a child process is not blocked by a lock taken in its parent before a fork; `workers`
likewise counts threads of the process `workers_pid`, and a child starts its own.
"""

from __future__ import annotations

from string import Template

from ..diagnostics import TinycompError
from ..target import Target
from .runtime_abi import (
    NUM_THREADS,
    PARALLEL_FOR,
    PID,
    POOL,
    POOL_CREATE,
    POOL_DESTROY,
    POOL_ENTER,
)

MAX_WORKERS = 1023
SPINS = 800
"""Pauses before sleeping: about 40 microseconds on current x86 CPUs."""

_FUTEX = {"x86_64": 202, "aarch64": 98}
_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}

_DECLARATIONS = """
; job word, futex; lock: pid of the owner or 0; pending: workers still running;
; waiting: the caller sleeps on pending; sleepers: workers asleep; stop: workers must end
%pool = type { i64, i64, i32, i32, i32, i32, i64, i64, ptr, ptr, i64, i64 }
;              0    1    2    3    4    5    6    7    8    9    10   11
;              job  lock pend wait slp  stop wrks wpid f    env  extent ranges
%start = type { ptr, i64, i64 } ; pool, worker number, last job word seen

declare ptr @calloc(i64, i64)
declare void @free(ptr)
declare i32 @getpid()
declare i32 @sched_yield()
declare i64 @syscall(i64, ...)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(i64)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
$pause_declaration

define internal void @pause() alwaysinline {
  $pause
  ret void
}

define internal void @futex_wait(ptr %word, i32 %value) {
  %r = call i64 (i64, ...) @syscall(i64 $futex, ptr %word, i32 128, i32 %value, ptr null)
  ret void
}

define internal void @futex_wake(ptr %word) {
  %r = call i64 (i64, ...) @syscall(i64 $futex, ptr %word, i32 129, i32 2147483647)
  ret void
}
"""

_RANGES = """
; Run range %t of %n: the first extent mod n ranges are one longer.
define internal void @run_range(ptr %f, ptr %env, i64 %extent, i64 %n, i64 %t) {
  %size = udiv i64 %extent, %n
  %rest = urem i64 %extent, %n
  %base = mul i64 %t, %size
  %longer_before = call i64 @llvm.umin.i64(i64 %t, i64 %rest)
  %begin = add i64 %base, %longer_before
  %is_longer = icmp ult i64 %t, %rest
  %one = zext i1 %is_longer to i64
  %length = add i64 %size, %one
  %end = add i64 %begin, %length
  %empty = icmp eq i64 %length, 0
  br i1 %empty, label %done, label %run
run:
  call void %f(ptr %env, i64 %begin, i64 %end, i64 %t)
  br label %done
done:
  ret void
}

declare i64 @llvm.umin.i64(i64, i64)

define internal void @run_ranges(ptr %f, ptr %env, i64 %extent, i64 %n, i64 %first) {
entry:
  %any = icmp ult i64 %first, %n
  br i1 %any, label %loop, label %done
loop:
  %t = phi i64 [ %first, %entry ], [ %next, %loop ]
  call void @run_range(ptr %f, ptr %env, i64 %extent, i64 %n, i64 %t)
  %next = add i64 %t, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""

_WORKER = """
define internal ptr @worker(ptr %start) {
entry:
  %pool = load ptr, ptr %start
  %number_at = getelementptr %start, ptr %start, i32 0, i32 1
  %number = load i64, ptr %number_at
  %seen_at = getelementptr %start, ptr %start, i32 0, i32 2
  %first_seen = load i64, ptr %seen_at
  call void @free(ptr %start)
  %pending = getelementptr %pool, ptr %pool, i32 0, i32 2
  %waiting = getelementptr %pool, ptr %pool, i32 0, i32 3
  %sleepers = getelementptr %pool, ptr %pool, i32 0, i32 4
  %stop_at = getelementptr %pool, ptr %pool, i32 0, i32 5
  %workers = getelementptr %pool, ptr %pool, i32 0, i32 6
  %f_at = getelementptr %pool, ptr %pool, i32 0, i32 8
  %env_at = getelementptr %pool, ptr %pool, i32 0, i32 9
  %extent_at = getelementptr %pool, ptr %pool, i32 0, i32 10
  br label %wait
wait:
  %seen = phi i64 [ %first_seen, %entry ], [ %job, %awake ], [ %job, %finished ]
  br label %spin
spin:
  %spins = phi i64 [ $spins, %wait ], [ %fewer, %again ], [ $spins, %sleep ]
  %job = load atomic i64, ptr %pool seq_cst, align 8
  %is_new = icmp ne i64 %job, %seen
  br i1 %is_new, label %awake, label %idle
idle:
  %tired = icmp eq i64 %spins, 0
  br i1 %tired, label %sleep, label %again
again:
  call void @pause()
  %fewer = sub i64 %spins, 1
  br label %spin
sleep:
  %low = trunc i64 %seen to i32
  %s0 = atomicrmw add ptr %sleepers, i32 1 seq_cst
  call void @futex_wait(ptr %pool, i32 %low)
  %s1 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %spin
awake:
  %n = lshr i64 %job, 32
  %mine = icmp ult i64 %number, %n
  br i1 %mine, label %run, label %wait
run:
  %stop = load atomic i32, ptr %stop_at seq_cst, align 4
  %stops = icmp ne i32 %stop, 0
  br i1 %stops, label %end, label %work
work:
  %f = load ptr, ptr %f_at
  %env = load ptr, ptr %env_at
  %extent = load i64, ptr %extent_at
  %threads_at = getelementptr %pool, ptr %pool, i32 0, i32 11
  %threads = load i64, ptr %threads_at
  call void @run_range(ptr %f, ptr %env, i64 %extent, i64 %threads, i64 %number)
  %left = atomicrmw sub ptr %pending, i32 1 seq_cst
  %last = icmp eq i32 %left, 1
  br i1 %last, label %notify, label %finished
notify:
  %asleep = load atomic i32, ptr %waiting seq_cst, align 4
  %sleeps = icmp ne i32 %asleep, 0
  br i1 %sleeps, label %wake, label %finished
wake:
  call void @futex_wake(ptr %pending)
  br label %finished
finished:
  br label %wait
end:
  %gone = atomicrmw sub ptr %workers, i64 1 seq_cst
  ret ptr null
}
"""

_START = """
; Have %wanted workers in this process if that can be had; returns how many there are. Locked.
define internal i64 @ensure_workers(ptr %pool, i64 %wanted, i64 %me) {
entry:
  %workers = getelementptr %pool, ptr %pool, i32 0, i32 6
  %pid_at = getelementptr %pool, ptr %pool, i32 0, i32 7
  %pid = load i64, ptr %pid_at
  %same = icmp eq i64 %pid, %me
  br i1 %same, label %count, label %forked
forked:
  %sleepers = getelementptr %pool, ptr %pool, i32 0, i32 4
  store i32 0, ptr %sleepers
  store i64 0, ptr %workers
  store i64 %me, ptr %pid_at
  br label %count
count:
  %have = load i64, ptr %workers
  %limit = call i64 @llvm.umin.i64(i64 %wanted, i64 $max_workers)
  %enough = icmp uge i64 %have, %limit
  br i1 %enough, label %ready, label %make
ready:
  ret i64 %have
make:
  %all = alloca [128 x i8], align 16
  %old = alloca [128 x i8], align 16
  %thread = alloca i64
  call void @llvm.memset.p0.i64(ptr %all, i8 -1, i64 128, i1 false)
  %m0 = call i32 @pthread_sigmask(i32 2, ptr %all, ptr %old) ; SIG_SETMASK: workers inherit it
  %job = load i64, ptr %pool
  br label %loop
loop:
  %i = phi i64 [ %have, %make ], [ %number, %made ]
  %more = icmp ult i64 %i, %limit
  br i1 %more, label %one, label %done
one:
  %number = add i64 %i, 1
  %start = call ptr @calloc(i64 24, i64 1)
  %no_memory = icmp eq ptr %start, null
  br i1 %no_memory, label %done, label %fill
fill:
  store ptr %pool, ptr %start
  %number_at = getelementptr %start, ptr %start, i32 0, i32 1
  store i64 %number, ptr %number_at
  %seen_at = getelementptr %start, ptr %start, i32 0, i32 2
  store i64 %job, ptr %seen_at
  %failed = call i32 @pthread_create(ptr %thread, ptr null, ptr @worker, ptr %start)
  %ok = icmp eq i32 %failed, 0
  br i1 %ok, label %made, label %refused
refused:
  call void @free(ptr %start)
  br label %done
made:
  %id = load i64, ptr %thread
  %d = call i32 @pthread_detach(i64 %id)
  store i64 %number, ptr %workers
  br label %loop
done:
  %m1 = call i32 @pthread_sigmask(i32 2, ptr %old, ptr null)
  %now = load i64, ptr %workers
  ret i64 %now
}

; Announce a job to threads 1 .. %n - 1.
define internal void @announce(ptr %pool, i64 %n) {
  %sleepers = getelementptr %pool, ptr %pool, i32 0, i32 4
  %old = load i64, ptr %pool
  %next = add i64 %old, 1
  %counter = and i64 %next, 4294967295
  %high = shl i64 %n, 32
  %job = or i64 %counter, %high
  store atomic i64 %job, ptr %pool seq_cst, align 8
  %asleep = load atomic i32, ptr %sleepers seq_cst, align 4
  %any = icmp ne i32 %asleep, 0
  br i1 %any, label %wake, label %done
wake:
  call void @futex_wake(ptr %pool)
  br label %done
done:
  ret void
}
"""

_PARALLEL_FOR = """
define void @$parallel_for(ptr %rt, ptr %f, ptr %env, i64 %extent) {
entry:
  %n_at = getelementptr i8, ptr %rt, i64 $num_threads
  %n = load i64, ptr %n_at
  %pool_at = getelementptr i8, ptr %rt, i64 $pool
  %pool = load ptr, ptr %pool_at
  %pid_at = getelementptr i8, ptr %rt, i64 $pid
  %me = load i64, ptr %pid_at
  %nothing = icmp sle i64 %extent, 0
  br i1 %nothing, label %return, label %some
some:
  %single = icmp eq i64 %n, 1
  %tiny = icmp eq i64 %extent, 1
  %no_pool = icmp eq ptr %pool, null
  %no_pid = icmp eq i64 %me, 0
  %a = or i1 %single, %tiny
  %b = or i1 %no_pool, %no_pid
  %serially = or i1 %a, %b
  br i1 %serially, label %serial, label %lock
lock:
  %lock_at = getelementptr %pool, ptr %pool, i32 0, i32 1
  %owner = load atomic i64, ptr %lock_at monotonic, align 8
  %busy = icmp eq i64 %owner, %me
  br i1 %busy, label %serial, label %try
try:
  %pair = cmpxchg ptr %lock_at, i64 %owner, i64 %me acquire monotonic
  %locked = extractvalue { i64, i1 } %pair, 1
  br i1 %locked, label %start, label %serial
start:
  %wanted = sub i64 %n, 1
  %workers = call i64 @ensure_workers(ptr %pool, i64 %wanted, i64 %me)
  %helpers = call i64 @llvm.umin.i64(i64 %workers, i64 %wanted)
  %threads = add i64 %helpers, 1
  %pending = getelementptr %pool, ptr %pool, i32 0, i32 2
  %waiting = getelementptr %pool, ptr %pool, i32 0, i32 3
  %f_at = getelementptr %pool, ptr %pool, i32 0, i32 8
  %env_at = getelementptr %pool, ptr %pool, i32 0, i32 9
  %extent_at = getelementptr %pool, ptr %pool, i32 0, i32 10
  %ranges_at = getelementptr %pool, ptr %pool, i32 0, i32 11
  %helpers32 = trunc i64 %helpers to i32
  store ptr %f, ptr %f_at
  store ptr %env, ptr %env_at
  store i64 %extent, ptr %extent_at
  store i64 %n, ptr %ranges_at
  store i32 0, ptr %waiting
  store atomic i32 %helpers32, ptr %pending seq_cst, align 4
  call void @announce(ptr %pool, i64 %threads)
  call void @run_range(ptr %f, ptr %env, i64 %extent, i64 %n, i64 0)
  call void @run_ranges(ptr %f, ptr %env, i64 %extent, i64 %n, i64 %threads)
  br label %spin
spin:
  %spins = phi i64 [ $spins, %start ], [ %fewer, %again ], [ 0, %sleep ]
  %left = load atomic i32, ptr %pending seq_cst, align 4
  %done = icmp eq i32 %left, 0
  br i1 %done, label %unlock, label %idle
idle:
  %tired = icmp eq i64 %spins, 0
  br i1 %tired, label %announce_sleep, label %again
again:
  call void @pause()
  %fewer = sub i64 %spins, 1
  br label %spin
announce_sleep:
  store atomic i32 1, ptr %waiting seq_cst, align 4
  %still = load atomic i32, ptr %pending seq_cst, align 4
  %now_done = icmp eq i32 %still, 0
  br i1 %now_done, label %unlock, label %sleep
sleep:
  call void @futex_wait(ptr %pending, i32 %still)
  br label %spin
unlock:
  store atomic i64 0, ptr %lock_at release, align 8
  ret void
serial:
  call void @run_ranges(ptr %f, ptr %env, i64 %extent, i64 %n, i64 0)
  br label %return
return:
  ret void
}
"""

_POOL = """
define ptr @$pool_create() {
  %pool = call ptr @calloc(i64 128, i64 1)
  ret ptr %pool
}

define void @$pool_enter(ptr %rt) {
  %pid = call i32 @getpid()
  %wide = sext i32 %pid to i64
  %at = getelementptr i8, ptr %rt, i64 $pid
  store i64 %wide, ptr %at
  ret void
}

define void @$pool_destroy(ptr %pool) {
entry:
  %workers = getelementptr %pool, ptr %pool, i32 0, i32 6
  %pid_at = getelementptr %pool, ptr %pool, i32 0, i32 7
  %stop = getelementptr %pool, ptr %pool, i32 0, i32 5
  %pid = load i64, ptr %pid_at
  %me32 = call i32 @getpid()
  %me = sext i32 %me32 to i64
  %same = icmp eq i64 %pid, %me
  br i1 %same, label %ask, label %release
ask:
  store atomic i32 1, ptr %stop seq_cst, align 4
  call void @announce(ptr %pool, i64 $everyone)
  br label %wait
wait:
  %left = load atomic i64, ptr %workers seq_cst, align 8
  %none = icmp eq i64 %left, 0
  br i1 %none, label %release, label %yield
yield:
  %y = call i32 @sched_yield()
  br label %wait
release:
  call void @free(ptr %pool)
  ret void
}
"""


def emit_threadpool(target: Target) -> str:
    """The pool as LLVM text, for Linux.

    Raises:
        TinycompError: the target's architecture or system is not supported.
    """
    architecture = target.triple.split("-")[0]
    if architecture not in _FUTEX or "linux" not in target.triple:
        raise TinycompError(
            f"there is no thread pool for the target {target.triple}",
            hint="threads are supported on Linux for x86_64 and aarch64",
        )
    pause_declaration, pause = _PAUSE[architecture]
    values = {
        "futex": _FUTEX[architecture],
        "pause": pause,
        "pause_declaration": pause_declaration,
        "spins": SPINS if architecture == "x86_64" else SPINS * 16,
        "max_workers": MAX_WORKERS,
        "everyone": MAX_WORKERS + 1,
        "num_threads": NUM_THREADS,
        "pool": POOL,
        "pid": PID,
        "parallel_for": PARALLEL_FOR,
        "pool_create": POOL_CREATE,
        "pool_destroy": POOL_DESTROY,
        "pool_enter": POOL_ENTER,
    }
    parts = (_DECLARATIONS, _RANGES, _WORKER, _START, _PARALLEL_FOR, _POOL)
    text = Template("".join(parts)).substitute(values)
    return f'target triple = "{target.triple}"\n{text}'

// Package gvisor runs a sandbox in gVisor: it drives the command runsc into the contract of
// package runtime.
//
// # A sandbox on the host
//
//	RunDir/bundle/config.json   what runsc starts
//	RunDir/s/                   runsc's state and its control socket (--root)
//	RunDir/console, .log        a FIFO that the sandbox prints to, and what is kept of it
//	RunDir/panic.log, runsc.log last words of a sentry, and of a runsc command
//	DiskDir/live-N/             the overlay's file store: content of what the sandbox wrote
//	builds/runsc-HASH/runsc     kept while a capture or an instance needs it
//	builds/guest-HASH/          the guest agent, bound read-only into the sandbox
//	/sys/fs/cgroup/…/PARENT/ID-UID
//
// The container in it is always called "s". Its processes (sentry, gofer, and a stub for each
// process inside) run under the sandbox's uid in a user namespace, so they are found and ended by
// that uid; the runsc commands that start and save it run as root and carry --root=RunDir/s.
//
// # Captures
//
// A full capture is runsc's checkpoint: kernel state (checkpoint.img), memory and the overlay's
// content (pages.img), and where each page belongs (pages_meta.img). It is always taken with
// --leave-running, so a failed one leaves the sandbox as it was, and never of a kernel that runsc
// has paused, which would be restored paused for ever. It loads in no other build of runsc, and
// the disk keeps its size. A capture of the disk alone is runsc's file-system checkpoint, booted
// from by the build that wrote it; the disk cannot be taken out of a full one, and not out of
// what a dead sandbox has left (Salvage).
//
// Checkpoints are whole: a parent saves nothing. An idle sandbox takes 2.5 to 3.2 MB, one that
// holds 200 MB in memory 216 MB each time, and what was written to the disk comes on top, each time.
//
// Measured on the reference machine while other work kept it busy (load 4 to 18 on two cores), so
// small differences mean nothing:
//
//   - No compression. For 200 MB of Python objects flate-best-speed wrote 23 MB for 200, but saving
//     took 1.4 s for 0.7 s (once each), and restoring 1.4 to 1.8 s for 0.4 to 0.9 s (three each).
//   - Not --background: no gain could be seen. Median time to the first exec with and without it,
//     eight restores each: idle 0.25 and 0.26 s, again 0.38 and 0.30; 200 MB 0.60 and 0.50 s, again
//     0.59 and 0.61; 600 MB 1.91 and 1.94 s.
//   - Not --exclude-committed-zero-pages: 200 MB that were written and zeroed again made 5 MB with
//     it and without it (tried once).
//   - All files are summed, pages.img too: at a capture beside the sync, at a restore before runsc
//     starts, so that no guest ever runs on damage. xxh3 takes 13 ms for 200 MB, reading them from
//     the page cache 46 ms, of a restore that takes 0.4 s.
//
// A capture's files lie in its directory and the record names them relative to it: a copy made of
// hard links (Link) is restored like the original, whatever becomes of that.
//
// # Limits
//
// The cgroup (v2, v1, or none, found by trying) limits the sentry and all stubs together. The
// memory that it may use is what was asked for and 48 MB. With that one process could hold 20 MB
// more than was asked and not 30 (256 and 512 MB sandboxes, dd with one large block): what is not the
// user's was 18 to 28 MB, and the rest is for a sentry that has more to manage. free shows the sum. At the limit the kernel ends a stub (a process inside is killed) or the sentry (the
// sandbox ends, "out of memory").
//
// # Failure rules
//
// Those of package runtime. Boot and Restore that fail or are cancelled end the runsc command,
// what it started, and remove everything above but builds. The file store means nothing without
// the sentry that wrote it: what a sandbox that dies had written since its last capture is lost.
package gvisor

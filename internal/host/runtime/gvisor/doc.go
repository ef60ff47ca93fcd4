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
// the disk keeps its size. A capture of the disk alone is runsc's file-system checkpoint; the disk
// cannot be taken out of a full one.
//
// Checkpoints are whole: a parent saves nothing. An idle sandbox takes 2.8 MB, one that holds
// 200 MB in memory 216 MB each time, and what was written to the disk comes on top, each time.
//
// Measured on the reference machine while it was busy, 200 MB held by Python, medians:
//
//   - No compression. flate-best-speed makes 23 MB of 200, but saving took 1.4 s for 0.7 s and
//     restoring 1.4 s for 0.4 s.
//   - Not --background: the first answer came after 0.60 s with it and 0.50 s without (idle: 0.25
//     and 0.26), for the guest needs its pages at once and the loader takes the same two cores.
//   - Not --exclude-committed-zero-pages: zeroed memory was left out without it too.
//   - All files are summed (xxh3: 13 ms for 200 MB, reading them 46 ms), pages.img too: at a
//     capture beside the sync, at a restore beside runsc, which reads them as well. So a damaged
//     file costs the start and nobody gets the sandbox.
//
// # Limits
//
// The cgroup (v2, v1, or none, found by trying) limits the sentry and all stubs together. The
// memory that it may use is what was asked for and 48 MB: sentry, gofer and stubs of a small
// sandbox hold 20 to 28 MB, and the rest is for a sentry that has more to manage. free shows that
// sum. At the limit the kernel ends a stub (a process inside is killed) or the sentry (the
// sandbox ends, "out of memory").
//
// # Failure rules
//
// Those of package runtime. Boot and Restore that fail or are cancelled end the runsc command,
// what it started, and remove everything above but builds. The file store means nothing without
// the sentry that wrote it: what a sandbox that dies had written since its last capture is lost.
package gvisor

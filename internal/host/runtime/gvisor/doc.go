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
// --leave-running, so a failed one leaves the sandbox as it was. It loads in no other build of
// runsc. A capture of the disk alone is runsc's file-system checkpoint.
//
// # Failure rules
//
// Those of package runtime. Boot and Restore that fail or are cancelled end the runsc command,
// what it started, and remove everything above but builds. The file store means nothing without
// the sentry that wrote it: what a sandbox that dies had written since its last capture is lost.
package gvisor

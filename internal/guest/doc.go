// Package guest is what runs inside a sandbox: roost-guest, one static binary, PID 1 of a VM
// or of a gVisor sandbox, an ordinary process elsewhere.
//
//	boot       from the kernel's first instruction of user space to a working root file system
//	reaper     the one place that waits for children
//	cgroup     the tree that user processes live in: frozen, thawed, killed as one
//	account    users and groups, and the paths they mean
//	identity   which sandbox this is: tokens, environment, generation
//	process    process.Process: start, attach, input, signals, terminals
//	export     the root file system as a tar, for templates
//	filesystem filesystem.Filesystem; files and archive: contents as streams
//	restore    roost.guest.v1.Control: freeze, the handshake after a restore, thaw, grow
//	server     all of it on one port, behind the tokens
//	guesttest  what their tests share; TestGuestInGVisor runs them on gVisor's kernel too
//
// # What gVisor's kernel does otherwise
//
// It has no cgroup freezer (cgroup signalFreezer), and drops a SIGSTOP that meets an execve. It
// follows a symlink in spite of O_NOFOLLOW when O_DIRECTORY is given too (archive root; os.Root
// and os.RemoveAll rely on it). The master of a terminal does not tell its foreground group, nor
// does /proc (process.Signal). The clock cannot be set, the random source is the host's (restore
// Sentry). Signals from inside do to PID 1 what they do to any process, SIGKILL and SIGSTOP of
// root too, which Linux holds off; kill -1 spares it.
package guest

// Package guest is what runs inside a sandbox: roost-guest, one static binary, PID 1 of a VM
// or an ordinary process elsewhere.
//
//	boot       from the kernel's first instruction of user space to a working root file system
//	reaper     the one place that waits for children
//	cgroup     the tree that user processes live in: frozen, thawed, killed as one
//	account    users and groups, and the paths they mean
//	identity   which sandbox this is: tokens, environment, generation
//	process    process.Process: start, attach, input, signals, terminals
//	filesystem filesystem.Filesystem; files and archive: contents as streams
//	restore    roost.guest.v1.Control: freeze, the handshake after a restore, thaw, grow
//	server     all of it on one port, behind the tokens
//
// # States
//
//	booted (user processes frozen, no access token) → restored → thawed ⇄ frozen
//
// Nothing but /health and Control answers before the first Restore; nothing of the user's runs
// before the Thaw that follows it.
package guest

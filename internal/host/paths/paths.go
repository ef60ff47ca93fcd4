// Package paths names every file, folder and socket that a host agent keeps, in one place.
//
//	<data>/                     0700, root's
//	  installation.json         id (4 characters), uid block; made once
//	  agent.sock                the agent's RPC
//	  agent.lock                held by the running agent
//	  client.json               address and key for the local CLI
//	  control/                  the control plane's database
//	  images/                   templates (package image)
//	  builds/                   builds of runsc and roost-guest that something still needs
//	  network.json              the installation's subnet (package network)
//	  sandboxes/<id>/
//	    journal.json            intent and truth of this sandbox
//	    run/                    sockets of the running VM; console.log stays after its death
//	    disk/                   live disk and sealed layers
//	    captures/<n>/           published captures; .tmp-<n> is one in the making
//	  sandboxes/.snapshots/<id>/ published snapshots: captures that belong to no sandbox;
//	                            .tmp-<id> is one in the making
//	  sandboxes/.trash/         what is being deleted
package paths

import (
	"fmt"
	"path/filepath"
)

// DefaultData is where an installation lives unless told otherwise.
const DefaultData = "/var/lib/roost"

// LongestSocket is the longest socket path below a data directory, for the check against
// the kernel's limit of 107 bytes.
const LongestSocket = "/sandboxes/aaaaaaaaaaaaaaaaaaaa/run/console.sock"

const socketLimit = 107

// Data is the root of an installation.
type Data string

// Validate refuses a data directory under which sockets would not fit.
func (d Data) Validate() error {
	if !filepath.IsAbs(string(d)) {
		return fmt.Errorf("data directory %q: not an absolute path", string(d))
	}
	if n := len(d) + len(LongestSocket); n > socketLimit {
		return fmt.Errorf("data directory %q: %d bytes too long for the sockets below it", string(d), n-socketLimit)
	}
	return nil
}

func (d Data) join(names ...string) string {
	return filepath.Join(append([]string{string(d)}, names...)...)
}

func (d Data) Installation() string { return d.join("installation.json") }
func (d Data) AgentSocket() string  { return d.join("agent.sock") }
func (d Data) AgentLock() string    { return d.join("agent.lock") }
func (d Data) Client() string       { return d.join("client.json") }
func (d Data) Control() string      { return d.join("control") }
func (d Data) Images() string       { return d.join("images") }
func (d Data) Builds() string       { return d.join("builds") }
func (d Data) Cache() string        { return d.join("cache") }
func (d Data) Sandboxes() string    { return d.join("sandboxes") }

// Trash lies beside the sandboxes, so that moving one there is a rename on any layout of disks.
func (d Data) Trash() string { return d.join("sandboxes", ".trash") }

// Reserve is a file that keeps space for pauses on the sandboxes' file system.
func (d Data) Reserve() string { return d.join("sandboxes", ".reserve") }

// Snapshots lies beside the sandboxes too: a snapshot shares files with them by hard links.
func (d Data) Snapshots() string { return d.join("sandboxes", ".snapshots") }

// Snapshot is one published snapshot.
func (d Data) Snapshot(id string) string { return filepath.Join(d.Snapshots(), id) }

// SnapshotStage is a snapshot while it is being made.
func (d Data) SnapshotStage(id string) string { return filepath.Join(d.Snapshots(), ".tmp-"+id) }

// Sandbox is the directory of one sandbox.
func (d Data) Sandbox(id string) Sandbox { return Sandbox(d.join("sandboxes", id)) }

// Sandbox is the root of one sandbox's files.
type Sandbox string

func (s Sandbox) String() string   { return string(s) }
func (s Sandbox) Journal() string  { return filepath.Join(string(s), "journal.json") }
func (s Sandbox) Run() string      { return filepath.Join(string(s), "run") }
func (s Sandbox) Disk() string     { return filepath.Join(string(s), "disk") }
func (s Sandbox) Captures() string { return filepath.Join(string(s), "captures") }

// Capture is the n-th published capture.
func (s Sandbox) Capture(n int) string {
	return filepath.Join(s.Captures(), fmt.Sprint(n))
}

// CaptureStage is the n-th capture while it is being made.
func (s Sandbox) CaptureStage(n int) string {
	return filepath.Join(s.Captures(), fmt.Sprintf(".tmp-%d", n))
}

// Names inside a capture.
const (
	Manifest    = "manifest.json"
	DeviceState = "device.state"
	MemoryMap   = "memory.map"
)

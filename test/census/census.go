// Package census counts what a test run could leave behind and names each thing it did.
//
// # What is counted
//
// Processes, uids in use, named and anonymous network namespaces, links, addresses, routes,
// nftables tables, forwarding switches, loop devices, device-mapper nodes, mounts, unix sockets,
// temporary files, cgroups, and of this process file descriptors and goroutines.
//
// # Whose
//
// A development machine has processes, mounts and links that come and go without us, and
// packages are tested side by side. So a Scope says what belongs to the run:
//
//   - Machine(run) is for the time before and after everything: processes that carry the
//     environment variable ROOST_TEST_RUN=run, whose program's name begins with qemu, roost or
//     runsc, or that run under a uid of the roost range (a VMM gets an environment of its own
//     and is nobody's child, hence the names); things named roost…; host links by their
//     naming scheme; what stands on files below a test's temporary folder; addresses, routes
//     and forwarding switches of the host.
//   - Own(names…) is for one test binary: its descendants, descriptors and goroutines, and
//     things whose name contains one of names, an installation id for example.
//
// The process that counts and its ancestors are never counted.
//
// # Example
//
//	func TestMain(m *testing.M) { os.Exit(census.Main(m, census.Own())) }
//
//	census.Check(t, census.Own("ab12"))   // in a test that is not parallel to others
package census

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Kind is a kind of thing that can leak.
type Kind string

// The kinds.
const (
	Process      Kind = "process"
	UID          Kind = "uid"
	Namespace    Kind = "network namespace"
	Link         Kind = "link"
	Address      Kind = "address"
	Route        Kind = "route"
	Table        Kind = "nft table"
	Sysctl       Kind = "sysctl"
	Loop         Kind = "loop device"
	DeviceMapper Kind = "device-mapper node"
	Mount        Kind = "mount"
	Socket       Kind = "unix socket"
	File         Kind = "file"
	Cgroup       Kind = "cgroup"
	FD           Kind = "file descriptor"
	Goroutine    Kind = "goroutine"
)

// Items are things of one kind: what makes each the same thing later (a pid and its start
// time, say), and how to name it to a person.
type Items map[string]string

// Census is what exists.
type Census map[Kind]Items

func (c Census) add(k Kind, key, text string) {
	if c[k] == nil {
		c[k] = Items{}
	}
	c[k][key] = text
}

func (c Census) addNamed(k Kind, name string) { c.add(k, name, name) }

// Leak is a thing that was not there before.
type Leak struct {
	Kind Kind
	What string
}

func (l Leak) String() string { return fmt.Sprintf("%s: %s", l.Kind, l.What) }

// Take counts what exists in a scope. A kind that this machine does not have counts as empty;
// anything else that cannot be read is an error.
func Take(s Scope) (Census, error) {
	c := Census{}
	procs, err := s.processes()
	if err != nil {
		return nil, err
	}
	c.addProcesses(s, procs)
	err = errors.Join(
		c.addNamespaces(s, procs),
		c.addLinks(s),
		c.addTables(s),
		c.addSysctls(s),
		c.addBlockDevices(s),
		c.addMounts(s),
		c.addSockets(s),
		c.addFiles(s),
		c.addCgroups(s),
	)
	if s.Self {
		err = errors.Join(err, c.addDescriptors())
		c.addGoroutines()
	}
	return c, err
}

// Diff names what after has and before had not, sorted by kind and name.
func Diff(before, after Census) []Leak {
	var out []Leak
	for _, kind := range slices.Sorted(maps.Keys(after)) {
		var leaks []Leak
		for key, text := range after[kind] {
			if _, had := before[kind][key]; !had {
				leaks = append(leaks, Leak{kind, text})
			}
		}
		slices.SortFunc(leaks, func(a, b Leak) int { return cmp.Compare(a.What, b.What) })
		out = append(out, leaks...)
	}
	return out
}

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// hostLinks lists again when the list changed while it was read, as it does when other tests' slots
// come and go.
func hostLinks(t *testing.T) []netlink.Link {
	t.Helper()
	for range 50 {
		links, err := netlink.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			require.NoError(t, err)
			return links
		}
	}
	t.Fatal("the host's links change all the time")
	return nil
}

// leftovers names what still carries an installation's id on this host: namespaces, links,
// rules, and processes that were started for its data directory.
func (r *roost) leftovers(id string) []string {
	var out []string
	if entries, err := os.ReadDir("/run/netns"); err == nil {
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "roost-"+id+"-") {
				out = append(out, "network namespace "+e.Name())
			}
		}
	}
	for _, l := range hostLinks(r.t) {
		if strings.HasPrefix(l.Attrs().Name, "r"+id+"h") {
			out = append(out, "link "+l.Attrs().Name)
		}
	}
	if tables, err := (&nftables.Conn{}).ListTables(); err == nil {
		for _, t := range tables {
			if strings.Contains(t.Name, id) {
				out = append(out, "nft table "+t.Name)
			}
		}
	}
	return append(out, r.processes()...)
}

// processes that have a file or socket of the data directory in their command line or open.
func (r *roost) processes() []string {
	var out []string
	dirs, _ := filepath.Glob("/proc/[0-9]*/fd")
	for _, dir := range dirs {
		pid := strings.Split(dir, "/")[2]
		if pid == fmt.Sprint(os.Getpid()) {
			continue
		}
		fds, _ := os.ReadDir(dir)
		for _, fd := range fds {
			target, _ := os.Readlink(filepath.Join(dir, fd.Name()))
			if strings.HasPrefix(target, r.data+"/") {
				comm, _ := os.ReadFile("/proc/" + pid + "/comm")
				out = append(out, fmt.Sprintf("process %s (%s) has %s open", pid, strings.TrimSpace(string(comm)), target))
				break
			}
		}
	}
	return out
}

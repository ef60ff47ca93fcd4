package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/test/trials"
)

// TestHostReboot: paused sandboxes resume, snapshots stay, running ones are lost, with the reason,
// and start again from what is left where there is something.
func TestHostReboot(t *testing.T) {
	onSome(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		s := trials.Begin(t, "host reboot", k.name, 1, 10)
		s.Each(func(t *testing.T, _ int) {
			r := r.as(t)
			ran, want := r.small()
			r.cycles(ran, want)
			slept, kept := r.small()
			r.snapshot(slept, "--name", "kept")
			r.run("pause", slept)
			r.reboot()
			require.Equal(t, v1.Lost, r.settles(ran, v1.Lost, v1.Failed))
			require.NotEmpty(t, *r.info(ran).Reason)
			r.settles(slept, paused)
			r.sound()
			r.run("resume", slept)
			r.holds(slept, kept)
			copied := r.run("create", "kept")
			r.holds(copied, kept)
			r.run("resume", "--cold", ran)
			r.holdsDisk(ran, want)
			r.run("rm", ran, slept, copied)
			r.run("snapshot", "rm", "kept")
			r.sound()
		})
	})
}

// reboot takes away what a host loses when it goes down, and starts the server in another boot.
func (r *roost) reboot() {
	r.t.Helper()
	id := r.installation()
	r.kill()
	for _, pids := range r.instances() {
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	eventually(r.t, soundLimit, "they have ended", func() bool { return len(r.instances()) == 0 })
	entries, err := os.ReadDir("/run/netns")
	require.NoError(r.t, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "roost-"+id+"-") {
			require.NoError(r.t, netns.DeleteNamed(e.Name()))
		}
	}
	for _, l := range hostLinks(r.t) {
		if strings.HasPrefix(l.Attrs().Name, "r"+id+"h") {
			_ = netlink.LinkDel(l) // it may go with its namespace meanwhile
		}
	}
	for _, dir := range sandboxDirs(r.t, r) {
		r.otherBoot(filepath.Join(dir, "journal.json"))
	}
	r.up()
}

// otherBoot makes a journal one that was written before the reboot.
func (r *roost) otherBoot(file string) {
	r.t.Helper()
	var journal map[string]json.RawMessage
	readJSON(r.t, file, &journal)
	require.Contains(r.t, journal, "boot_id")
	journal["boot_id"] = json.RawMessage(`"11111111-2222-3333-4444-555555555555"`)
	raw, err := json.Marshal(journal)
	require.NoError(r.t, err)
	require.NoError(r.t, os.WriteFile(file, raw, 0o600))
}

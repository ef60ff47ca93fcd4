package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/test/trials"
)

// disk is a small file system that an installation's sandboxes lie on.
type disk struct {
	*roost
	mount string
}

// onSmallDisk makes an installation with a disk of its own for sandboxes, and starts it.
func onSmallDisk(t *testing.T, k kind) disk {
	t.Helper()
	r := install(t, k.flags()...)
	d := disk{roost: r, mount: filepath.Join(r.data, "sandboxes")}
	require.NoError(t, os.MkdirAll(d.mount, 0o700))
	require.NoError(t, unix.Mount("tmpfs", d.mount, "tmpfs", 0, "size=1g"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(d.mount, 0)) })
	t.Cleanup(func() { // before the unmount: nothing may use it any more
		r.stop()
		_, _ = exec.Command(roostBin, "uninstall", "--data", r.data, "--yes", "--keep-images").CombinedOutput()
		_ = os.MkdirAll(d.mount, 0o700)
	})
	// It would be given to the pauses that must fail here.
	r.arm("sandbox.fill.reserve", "error")
	r.up()
	return d
}

func (d disk) as(t *testing.T) disk { return disk{roost: d.roost.as(t), mount: d.mount} }

// used is how many bytes are taken.
func (d disk) used() int64 {
	d.t.Helper()
	var st unix.Statfs_t
	require.NoError(d.t, unix.Statfs(d.mount, &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// leave makes the disk so small that just so much is free.
func (d disk) leave(free int64) {
	d.t.Helper()
	require.NoError(d.t, unix.Mount("tmpfs", d.mount, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", d.used()+free)))
}

func (d disk) grow() {
	d.t.Helper()
	require.NoError(d.t, unix.Mount("tmpfs", d.mount, "tmpfs", unix.MS_REMOUNT, "size=1g"))
	eventually(d.t, time.Minute, "all go on", func() bool { return len(d.space().Frozen) == 0 })
}

// ballast is what a pause has to write, at least, in bytes.
const ballast = 30_000_000

// load changes the ballast in memory and on the disk.
func (d disk) load(id string) {
	d.t.Helper()
	d.sh(id, fmt.Sprintf("head -c %d /dev/urandom >/dev/shm/ballast; head -c %d /dev/urandom >/root/ballast; sync", ballast, ballast/10))
}

// TestDiskFull: a pause or a snapshot that finds the host's disk full, at whatever moment, leaves
// the sandbox running and nothing else, says so, and succeeds once there is space.
func TestDiskFull(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		d := onSmallDisk(t, k)
		id, want := d.small()
		d.load(id)
		d.run("pause", id) // what it would have needed is measured after the resume
		d.run("resume", id)
		s := trials.Begin(t, "disk full in pause and snapshot", k.name, 4, 180)
		s.Each(func(t *testing.T, n int) {
			d := d.as(t)
			op, percent := []string{"pause", "snapshot"}[n%2], percentOf(s, n)
			d.load(id)
			d.refusedWhenFull(id, op, ballast*int64(percent)/100)
			d.holds(id, want)
			d.succeeds(id, op)
			d.holds(id, want)
			d.sound()
		})
		d.run("rm", id)
	})
}

// percentOf spreads the trials over 10 to 99 %: in the soak each is met, with each operation.
func percentOf(s *trials.Scenario, n int) int {
	if s.Wanted() >= 180 {
		return 10 + (n/2)%90
	}
	return 10 + rand.New(rand.NewPCG(s.Seed(), uint64(n))).IntN(90) //nolint:gosec // to be repeated
}

func (d disk) args(id, op string) []string {
	if op == "snapshot" {
		return []string{"snapshot", "create", id, "--name", "kept"}
	}
	return []string{op, id}
}

func (d disk) refusedWhenFull(id, op string, free int64) {
	d.t.Helper()
	d.leave(free)
	res := d.try(append(d.args(id, op), "--json")...)
	require.NotZero(d.t, res.code, "%s with %d bytes free", op, free)
	require.Contains(d.t, res.stderr, "resource_exhausted")
	require.Contains(d.t, res.stderr, "full")
	require.Equal(d.t, running, d.info(id).State)
	require.Empty(d.t, d.strays())
	d.grow()
}

func (d disk) succeeds(id, op string) {
	d.t.Helper()
	d.run(d.args(id, op)...)
	if op == "snapshot" {
		d.run("snapshot", "rm", "kept")
		return
	}
	d.run("resume", id)
}

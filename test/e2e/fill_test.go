package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// ownDisk gives an installation that is not started a file system of its own for its sandboxes: ext4
// in a sparse file. What is 5 % of it is more than a writer makes before it is seen.
func (r *roost) ownDisk() {
	r.t.Helper()
	file, at := filepath.Join(r.data, "disk.img"), filepath.Join(r.data, "sandboxes")
	require.NoError(r.t, os.WriteFile(file, nil, 0o600))
	require.NoError(r.t, os.Truncate(file, 8<<30))
	out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", file).CombinedOutput()
	require.NoError(r.t, err, string(out))
	require.NoError(r.t, os.MkdirAll(at, 0o700))
	out, err = exec.Command("mount", "-o", "loop", file, at).CombinedOutput()
	require.NoError(r.t, err, string(out))
	r.t.Cleanup(func() { require.NoError(r.t, unix.Unmount(at, 0)) })
	require.NoError(r.t, os.Remove(filepath.Join(at, "lost+found"))) // no sandbox of anybody's
	r.t.Cleanup(func() {                                             // before the unmount: nothing may use it any more
		r.stop()
		_, _ = exec.Command(roostBin, "uninstall", "--data", r.data, "--yes", "--keep-images").CombinedOutput()
		_ = os.MkdirAll(at, 0o700)
	})
}

// filler is a file of ours on the sandboxes' file system.
func (r *roost) filler() string { return filepath.Join(r.data, "sandboxes", "filler") }

// fillTo fills the file system from outside, but for so many bytes below percent.
func (r *roost) fillTo(percent float64, but int64) {
	r.t.Helper()
	var st unix.Statfs_t
	require.NoError(r.t, unix.Statfs(filepath.Dir(r.filler()), &st))
	used, free := int64(st.Blocks-st.Bfree)*st.Bsize, int64(st.Bavail)*st.Bsize
	size := free - int64(float64(used+free)*(100-percent)/100) - but
	require.Positive(r.t, size)
	f, err := os.Create(r.filler())
	require.NoError(r.t, err)
	require.NoError(r.t, unix.Fallocate(int(f.Fd()), 0, 0, size))
	require.NoError(r.t, f.Close())
}

func (r *roost) drain() { _ = os.Remove(r.filler()) }

// space is what the host says of its disk.
func (r *roost) space() v1.Disk {
	r.t.Helper()
	var found struct {
		Host *v1.Host `json:"host"`
	}
	res := r.try("doctor", "--json") // which fails on a full disk
	require.NoError(r.t, json.Unmarshal([]byte(res.stdout), &found), "%s%s", res.stdout, res.stderr)
	require.NotNil(r.t, found.Host, res.stdout)
	require.NotNil(r.t, found.Host.Disk)
	return *found.Host.Disk
}

func (r *roost) becomesFrozen(id string) {
	r.t.Helper()
	eventually(r.t, 2*time.Minute, id+" is frozen", func() bool { return slices.Contains(r.space().Frozen, id) })
}

// refusedAsFull: a command that makes something new.
func (r *roost) refusedAsFull(args ...string) {
	r.t.Helper()
	res := r.try(append(args, "--json")...)
	require.NotZero(r.t, res.code, "%v", args)
	require.Contains(r.t, res.stderr, "resource_exhausted")
	require.Contains(r.t, res.stderr, "the host's disk is 9")
	require.Contains(r.t, res.stderr, "roost rm")
}

// bases are the templates' disks and their sums.
func bases(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range []string{"disk.ext4", "tree.erofs"} {
		found, err := filepath.Glob(filepath.Join(templates, "images", "blobs", "*", name))
		require.NoError(t, err)
		for _, path := range found {
			f, err := os.Open(path)
			require.NoError(t, err)
			sum := sha256.New()
			_, err = io.Copy(sum, f)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			out[path] = fmt.Sprintf("%x", sum.Sum(nil))
		}
	}
	require.NotEmpty(t, out)
	return out
}

// torrent writes as fast as it can, but no more than so many MB; not zeros, which a disk need not keep.
func (r *roost) torrent(id string, mb int) {
	r.t.Helper()
	r.sh(id, fmt.Sprintf(`setsid sh -c 'tr "\\000" x </dev/zero | head -c %dM >/root/torrent' >/dev/null 2>&1 </dev/null & echo $! >/dev/shm/torrent`, mb))
}

func (r *roost) stopTorrent(id string) {
	r.t.Helper()
	r.sh(id, "kill -9 -- -$(cat /dev/shm/torrent); rm -f /root/torrent; sync")
}

// TestDiskFills: who writes on a filling disk stands still before it is full, and says why; others do
// not notice; it can be paused, and goes on when there is room.
func TestDiskFills(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := install(t, k.flags()...)
		r.ownDisk()
		r.up()
		before := bases(t)
		idle, kept := r.small()
		writer, want := r.small()

		r.fillTo(95, 60_000_000)
		require.Equal(t, v1.DiskFilling, r.space().State)
		r.torrent(writer, 600)
		r.becomesFrozen(writer)
		r.holds(idle, kept)
		full := r.space()
		require.Equal(t, v1.DiskFull, full.State)
		require.Equal(t, []string{writer}, full.Frozen)
		require.Positive(t, full.FreeBytes, "it stands still before the disk is full")
		eventually(t, time.Minute, "its row says why", func() bool {
			row := r.info(writer)
			return row.State == running && row.Reason != nil && strings.Contains(*row.Reason, "frozen: the host's disk is")
		})
		res := r.try("exec", writer, "--", "true")
		require.NotZero(t, res.code)
		require.Contains(t, res.stderr, "frozen: the host's disk is")
		r.refusedAsFull("create", "--memory-mb", "256")
		r.refusedAsFull("snapshot", "create", idle)
		r.refusedAsFull("fork", writer)
		r.run("pause", writer)
		require.Empty(t, r.space().Frozen)

		// What was saved is all there, and goes on.
		r.drain()
		require.Equal(t, v1.DiskOk, r.space().State)
		r.run("resume", writer)
		r.stopTorrent(writer)
		r.holds(writer, want)

		// It goes on by itself, with its clock right.
		r.fillTo(95, 60_000_000)
		r.torrent(writer, 600)
		r.becomesFrozen(writer)
		r.drain()
		eventually(t, time.Minute, "it goes on", func() bool { return len(r.space().Frozen) == 0 })
		r.stopTorrent(writer)
		clock, err := strconv.ParseInt(r.sh(writer, "date +%s"), 10, 64)
		require.NoError(t, err)
		require.InDelta(t, time.Now().Unix(), clock, 10)
		r.holds(writer, want)
		eventually(t, time.Minute, "the reason goes away", func() bool { return r.info(writer).Reason == nil })

		// Nobody stands still for what others fill.
		r.fillTo(97, 0)
		r.refusedAsFull("create", "--memory-mb", "256")
		r.holds(idle, kept)
		r.run("rm", writer, idle)
		r.drain()
		require.Equal(t, before, bases(t))
	})
}

// heldNow are the sandboxes whose journals say that they are frozen.
func (r *roost) heldNow() bool {
	found, _ := filepath.Glob(filepath.Join(r.data, "sandboxes", "*", "journal.json"))
	return slices.ContainsFunc(found, func(path string) bool {
		raw, _ := os.ReadFile(path)
		return strings.Contains(string(raw), `"held"`)
	})
}

// untilOr waits for a condition, or the server's end, which is a result.
func (s *stage) untilOr(what string, cond func() bool) (res result, died bool) {
	s.t.Helper()
	s.mu.Lock()
	exited := s.exited
	s.mu.Unlock()
	eventually(s.t, time.Minute, what, func() bool {
		select {
		case <-exited:
			died = true
		default:
		}
		return died || cond()
	})
	return result{code: 1, stderr: "the server ended"}, died
}

// fillAndDrain: a sandbox is frozen on a full disk, and goes on; the reserve is made again.
func (s *stage) fillAndDrain() result {
	s.t.Helper()
	defer s.drain()
	reserve := filepath.Join(s.data, "sandboxes", ".reserve")
	s.sh(s.id, `rm -f /root/drops
setsid sh -c 'for i in $(seq 400); do head -c 1000000 /dev/zero | tr "\000" x; sleep 0.05; done >/root/drops' </dev/null >/dev/null 2>&1 & echo $! >/dev/shm/drops`)
	_ = os.Remove(reserve)
	s.fillTo(96.5, 0)
	if res, died := s.untilOr("the sandbox is frozen", s.heldNow); died {
		return res
	}
	s.drain()
	if res, died := s.untilOr("it goes on", func() bool { return !s.heldNow() }); died {
		return res
	}
	if res, died := s.untilOr("the reserve is made", func() bool { _, err := os.Stat(reserve); return err == nil }); died {
		return res
	}
	res := s.try("exec", "--user", "root", s.id, "--", "sh", "-c", "kill -9 -- -$(cat /dev/shm/drops); rm -f /root/drops; sync")
	if late, died := s.untilOr("it is thawed for good", func() bool { return !s.heldNow() }); died {
		return late
	}
	return res
}

func (s *stage) pauseWhenFull() result {
	s.t.Helper()
	defer s.drain()
	if _, died := s.untilOr("the reserve is made", func() bool {
		_, err := os.Stat(filepath.Join(s.data, "sandboxes", ".reserve"))
		return err == nil
	}); died {
		return result{code: 1, stderr: "the server ended"}
	}
	s.fillTo(96.5, 0)
	return s.try("pause", s.id)
}

// goesOnByItself: nothing is frozen any more.
func (s *stage) goesOnByItself() {
	s.t.Helper()
	eventually(s.t, time.Minute, "nothing is frozen", func() bool { return !s.heldNow() })
}

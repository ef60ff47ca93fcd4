package installation

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/uids"
)

// dirs are a data directory and a host's directory that the test owns.
func dirs(t *testing.T) (paths.Data, string) {
	t.Helper()
	root, err := os.MkdirTemp("", "inst-") //nolint:usetesting // short: sockets lie below it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(root)) })
	return paths.Data(filepath.Join(root, "data")), filepath.Join(root, "host")
}

func TestInstallationIsMadeOnce(t *testing.T) {
	t.Parallel()
	data, host := dirs(t)
	in, err := open(data, host)
	require.NoError(t, err)
	require.Regexp(t, idForm, in.ID)
	require.True(t, in.UIDs.Valid())
	require.NoError(t, in.Close())
	again, err := open(data, host)
	require.NoError(t, err)
	require.Equal(t, in.ID, again.ID)
	require.Equal(t, in.UIDs, again.UIDs)
	require.NoError(t, again.Close())
	for path, mode := range map[string]os.FileMode{string(data): 0o700, data.Installation(): 0o600, data.AgentLock(): 0o600} {
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, mode, st.Mode().Perm(), path)
	}
}

func TestOneAgentAtATime(t *testing.T) {
	t.Parallel()
	data, host := dirs(t)
	in, err := open(data, host)
	require.NoError(t, err)
	_, err = open(data, host)
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
	require.ErrorContains(t, err, "another roost runs on it")
	require.NotEmpty(t, fault.HintOf(err))
	require.NoError(t, in.Close())
	in, err = open(data, host)
	require.NoError(t, err)
	require.NoError(t, in.Close())
}

// A process that dies holds nothing.
func TestLockEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	data, host := dirs(t)
	require.NoError(t, os.MkdirAll(string(data), 0o700))
	holder := exec.Command("flock", data.AgentLock(), "-c", "echo held; exec sleep 60")
	out, err := holder.StdoutPipe()
	require.NoError(t, err)
	holder.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, holder.Start())
	_, err = out.Read(make([]byte, 4))
	require.NoError(t, err)
	_, err = open(data, host)
	require.ErrorContains(t, err, "another roost")
	require.NoError(t, syscall.Kill(-holder.Process.Pid, syscall.SIGKILL))
	_ = holder.Wait()
	require.Eventually(t, func() bool {
		in, err := open(data, host)
		if err == nil {
			require.NoError(t, in.Close())
		}
		return err == nil
	}, 5e9, 1e7)
}

func TestBadInstallations(t *testing.T) {
	t.Parallel()
	_, host := dirs(t)
	_, err := open("relative", host)
	require.Equal(t, fault.Invalid, fault.KindOf(err))
	long := paths.Data("/tmp/" + string(make([]byte, 100)))
	_, err = open(long, host)
	require.Equal(t, fault.Invalid, fault.KindOf(err))
	require.NotEmpty(t, fault.HintOf(err))
	for name, content := range map[string]string{
		"empty": "", "no JSON": "x", "no id": `{"uid_block":300000}`,
		"bad id": `{"id":"../x","uid_block":300000}`, "bad block": `{"id":"ab12","uid_block":1000}`,
	} {
		data, host := dirs(t)
		require.NoError(t, os.MkdirAll(string(data), 0o700))
		require.NoError(t, os.WriteFile(data.Installation(), []byte(content), 0o600))
		_, err := open(data, host)
		require.Error(t, err, name)
		raw, err := os.ReadFile(data.Installation())
		require.NoError(t, err)
		require.Equal(t, content, string(raw), "%s: it is left as it is", name)
		lock, err := takeLock(data)
		require.NoError(t, err, "%s: the lock is given back", name)
		require.NoError(t, lock.Close())
	}
}

// Installations of one host never share a block, however many begin at once.
func TestBlocksAreNotShared(t *testing.T) {
	t.Parallel()
	_, host := dirs(t)
	const many = 40
	var wg sync.WaitGroup
	all := make([]*Installation, many)
	for i := range all {
		data, _ := dirs(t)
		wg.Go(func() {
			in, err := open(data, host)
			if err == nil {
				all[i] = in
			}
		})
	}
	wg.Wait()
	blocks := map[uids.Block]bool{}
	for _, in := range all {
		require.NotNil(t, in)
		require.False(t, blocks[in.UIDs], "block %d is two installations'", in.UIDs)
		blocks[in.UIDs] = true
		require.NoError(t, in.Close())
		require.NoError(t, in.Forget())
	}
	require.NoDirExists(t, host, "the last one leaves nothing")
}

func TestBlockOfAnInstallationThatIsGone(t *testing.T) {
	t.Parallel()
	gone, host := dirs(t)
	in, err := open(gone, host)
	require.NoError(t, err)
	require.NoError(t, in.Close())
	require.NoError(t, os.RemoveAll(string(gone)))
	require.NoError(t, withOwners(host, func(o owners) error {
		require.Empty(t, o)
		return nil
	}))
}

// After a reboot, which forgets who has what, another installation may have been faster.
func TestBlockThatWasTakenMeanwhile(t *testing.T) {
	t.Parallel()
	data, host := dirs(t)
	in, err := open(data, host)
	require.NoError(t, err)
	require.NoError(t, in.Close())
	other, _ := dirs(t)
	require.NoError(t, os.MkdirAll(string(other), 0o700))
	raw, err := json.Marshal(Installation{ID: "zzzz", UIDs: in.UIDs})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(other.Installation(), raw, 0o600))
	require.NoError(t, os.RemoveAll(host)) // the reboot
	second, err := open(other, host)
	require.NoError(t, err)
	require.Equal(t, in.UIDs, second.UIDs)
	again, err := open(data, host)
	require.NoError(t, err)
	require.Equal(t, in.ID, again.ID)
	require.NotEqual(t, in.UIDs, again.UIDs)
	require.NoError(t, again.Close())
	again, err = open(data, host)
	require.NoError(t, err)
	require.NotEqual(t, second.UIDs, again.UIDs, "kept")
	require.NoError(t, again.Close())
	require.NoError(t, second.Close())
}

func TestNoBlockIsLeft(t *testing.T) {
	t.Parallel()
	o := owners{}
	for n := range uids.Blocks {
		o[key(uids.NewBlock(n))] = "/other"
	}
	_, err := o.pick("/mine", 3)
	require.Equal(t, fault.ResourceExhausted, fault.KindOf(err))
	require.NotEmpty(t, fault.HintOf(err))
}

package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
)

var allStates = []State{Creating, Running, Pausing, Paused, Resuming, Snapshotting, Failed, Lost, Destroying}

func TestTransitions(t *testing.T) {
	t.Parallel()
	for _, s := range allStates {
		require.True(t, may(s, Destroying), "delete is legal from %s", s)
		require.False(t, may(Destroying, s) && s != Destroying, "nothing comes back from it: %s", s)
		back := s == Paused || s == Resuming || s == Destroying
		require.Equal(t, back, may(Failed, s), "from failed only what was saved of it comes back: %s", s)
		require.Equal(t, back, may(Lost, s), "nor from lost: %s", s)
	}
	require.True(t, may(Pausing, Running), "a pause can be undone")
	require.True(t, may(Resuming, Paused), "a resume can be undone")
	require.False(t, may(Creating, Paused))
	require.False(t, may(Paused, Running), "not without resuming")
}

func TestNeedSaysWhatToDo(t *testing.T) {
	t.Parallel()
	require.NoError(t, need("x", Running, Running, "exec in"))
	for state, hint := range map[State]string{
		Paused: "roost resume x", Failed: "roost resume --cold x", Lost: "roost resume --cold x", Pausing: "try again", Destroying: "try again",
	} {
		err := need("x", state, Running, "exec in")
		require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
		require.ErrorContains(t, err, "exec in sandbox x: it is "+string(state))
		require.Contains(t, fault.HintOf(err), hint)
	}
}

func TestFence(t *testing.T) {
	t.Parallel()
	j := journal{ID: "x", Generation: 5}
	for generation, ok := range map[uint64]bool{0: true, 4: false, 5: true, 6: true} {
		err := fence(j, Operation{Generation: generation})
		require.Equal(t, ok, err == nil, "generation %d", generation)
		require.Equal(t, !ok, fault.Is(err, fault.FailedPrecondition))
	}
}

func TestJournalIsReadBack(t *testing.T) {
	t.Parallel()
	dir := paths.Sandbox(t.TempDir())
	_, err := readJournal(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	for _, durable := range []bool{false, true} {
		j := journal{Version: 1, ID: "x", State: Paused, Slot: 3, UID: 7, Generation: 9, Envs: map[string]string{"A": "b"}}
		j.note("one")
		require.NoError(t, j.save(dir, durable))
		got, err := readJournal(dir)
		require.NoError(t, err)
		require.Equal(t, &j, got)
	}
	st, err := os.Stat(dir.Journal())
	require.NoError(t, err)
	require.EqualValues(t, 0o600, st.Mode().Perm(), "it holds tokens")
	require.NoError(t, os.WriteFile(dir.Journal(), []byte(`{"id":"x"}`), 0o600))
	got, err := readJournal(dir)
	require.NoError(t, err)
	require.Equal(t, noSlot, got.Slot, "no slot is not slot 0")
	require.NoError(t, os.WriteFile(dir.Journal(), []byte(`{`), 0o600))
	_, err = readJournal(dir)
	require.ErrorContains(t, err, "parse journal")
}

func TestOperationsAreBounded(t *testing.T) {
	t.Parallel()
	var j journal
	j.note("")
	require.Empty(t, j.Operations)
	require.False(t, j.did(""))
	for i := range 3 * operationsKept {
		j.note(fmt.Sprint(i))
		j.note(fmt.Sprint(i))
	}
	require.Len(t, j.Operations, operationsKept)
	require.True(t, j.did(fmt.Sprint(3*operationsKept-1)))
	require.False(t, j.did("0"))
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	t.Parallel()
	dir := paths.Sandbox(t.TempDir())
	s := newSandbox(dir, journal{ID: "x", State: Creating, Operations: []string{"a"}}, nil)
	require.ErrorContains(t, s.update(false, func(j *journal) { j.State = Paused }), "creating cannot become paused")
	require.Equal(t, Creating, s.journal().State)
	require.NoFileExists(t, dir.Journal())
	require.NoError(t, os.Mkdir(dir.Journal()+".tmp", 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir.Journal()+".tmp", "x"), nil, 0o600))
	require.Error(t, s.update(false, func(j *journal) { j.State = Running; j.note("b") }))
	require.Equal(t, Creating, s.journal().State)
	require.Equal(t, []string{"a"}, s.journal().Operations)
	s.remember(func(j *journal) { j.State = Destroying })
	require.Equal(t, Destroying, s.journal().State)
}

func TestManifest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, _, err := readCapture(dir)
	require.ErrorIs(t, err, os.ErrNotExist, "without a manifest there is no capture")
	man := manifest{Version: manifestVersion, SandboxID: "x", Generation: 3, Record: []byte(`{"a":1}`), ControlToken: "t"}
	require.NoError(t, writeManifest(dir, man))
	c, got, err := readCapture(dir)
	require.NoError(t, err)
	require.Equal(t, man, got)
	require.Equal(t, runtime.Capture{Dir: dir, Record: man.Record}, c)
	raw, err := os.ReadFile(filepath.Join(dir, paths.Manifest))
	require.NoError(t, err)
	require.Equal(t, "roost-capture 2 ", string(raw[:16]))

	// What an earlier Roost wrote is read; what a later one may write is not, nor is it damage.
	bare := `{"version":1,"sandbox_id":"x","generation":3,"record":{"a":1},"control_token":"t"}`
	_, got, err = readManifest(t, dir, []byte(bare))
	require.NoError(t, err)
	require.Equal(t, "x", got.SandboxID)
	head := "roost-capture 3 "
	_, _, err = readManifest(t, dir, []byte(head+manifestSum(head, []byte("?"))+"\n?"))
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
	require.ErrorContains(t, err, "format is version 3, this roost reads 2")
	for _, bad := range []string{"x", "", "\n", "{", `{"version":2}`, string(raw) + "\n", string(raw) + string(raw)} {
		_, _, err = readManifest(t, dir, []byte(bad))
		require.Equal(t, fault.DataLoss, fault.KindOf(err), "%q", bad)
		require.ErrorContains(t, err, "parse capture manifest")
	}
}

func readManifest(t *testing.T, dir string, raw []byte) (runtime.Capture, manifest, error) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, paths.Manifest), raw, 0o600))
	return readCapture(dir)
}

// Every flipped bit and every cut of a manifest is seen.
func TestDamagedManifest(t *testing.T) {
	t.Parallel()
	man := manifest{
		Version: manifestVersion, SandboxID: "x", Generation: 3, Record: []byte(`{"a":1}`), ControlToken: "t",
		TemplateName: "base", Envs: map[string]string{"A": "b"}, IdleTimeout: time.Minute, DiskOnly: true,
	}
	raw, err := man.encode()
	require.NoError(t, err)
	got, err := parseManifest(raw)
	require.NoError(t, err)
	require.Equal(t, man, got)
	for bit := range 8 * len(raw) {
		bad := bytes.Clone(raw)
		bad[bit/8] ^= 1 << (bit % 8)
		_, err := parseManifest(bad)
		require.True(t, fault.Is(err, fault.DataLoss), "bit %d: %v", bit, err)
	}
	for n := range raw {
		_, err := parseManifest(raw[:n])
		require.True(t, fault.Is(err, fault.DataLoss), "cut at %d: %v", n, err)
	}
}

func FuzzManifest(f *testing.F) {
	raw, err := manifest{SandboxID: "x", Record: []byte(`{}`)}.encode()
	require.NoError(f, err)
	f.Add(raw)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		man, err := parseManifest(raw)
		if err == nil && man.Version == manifestVersion {
			_, body, err := openManifest(raw)
			require.NoError(t, err)
			require.True(t, json.Valid(body))
		}
	})
}

func TestPrune(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"keep/a", "keep/deep/b", "go/c", "go/deep/d", "e"} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
	}
	require.NoError(t, prune(dir, func(path string) bool { return path == filepath.Join(dir, "keep", "deep", "b") }))
	var left []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		left = append(left, path)
		return err
	}))
	require.Equal(t, []string{dir, dir + "/keep", dir + "/keep/deep", dir + "/keep/deep/b"}, left)
	require.Error(t, prune(filepath.Join(dir, "none"), nil))
}

func TestAllocatedIsRealUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	require.NoError(t, err)
	require.NoError(t, f.Truncate(1<<30))
	_, err = f.WriteAt(make([]byte, 8192), 1<<20)
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Sync(), f.Close()))
	n := allocated(dir)
	require.GreaterOrEqual(t, n, int64(8192))
	require.Less(t, n, int64(1<<20))
	require.Zero(t, allocated(filepath.Join(dir, "none")))
}

func TestExplain(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	require.NoError(t, explain(ctx, nil))
	plain := errors.New("plain")
	require.Equal(t, plain, explain(ctx, plain), "nothing cut it")
	cancel(fault.New(fault.Internal, "", "", "the guest panicked").WithHint("look"))
	err := explain(ctx, fault.Wrap(ctx.Err(), "ask", "guest"))
	require.Equal(t, fault.Internal, fault.KindOf(err))
	require.ErrorContains(t, err, "the guest panicked")
	require.ErrorContains(t, err, "ask guest")
	require.Equal(t, "look", fault.HintOf(err))
	require.Equal(t, err, explain(ctx, err), "said once")
}

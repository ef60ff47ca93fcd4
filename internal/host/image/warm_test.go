package image

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

func smallKey(t Template) WarmKey {
	return WarmKey{
		Image: t.Digest, Kernel: t.Kernel.SHA256, Cmdline: "tsc_early_khz=2600000", Guest: "g", Boot: "b",
		Runtime: "r", Machine: "microvm", CPU: "max", VCPUs: 1, MemoryMB: 256,
	}
}

func stageSmall(t *testing.T, s *Store, key WarmKey, content string) *Stage {
	t.Helper()
	g, err := s.StageWarm(key)
	require.NoError(t, err)
	for _, name := range []string{"memory", "state"} {
		require.NoError(t, os.WriteFile(filepath.Join(g.Dir, name), []byte(content+name), 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(g.Dir, "disk"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(g.Dir, "disk", "0.qcow2"), []byte(content), 0o600))
	return g
}

func TestWarmMemoryIsPublishedAndFound(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	tpl := publishSmall(t, s, "base", "kernel", "disk")
	key := smallKey(tpl)
	_, err := s.Warm(tpl, key)
	require.Equal(t, fault.NotFound, fault.KindOf(err))
	g := stageSmall(t, s, key, "x")
	made, err := g.Publish(Warm{Record: json.RawMessage(`{"a":1}`), ControlToken: "secret", DiskBytes: 5 << 30})
	require.NoError(t, err)
	require.NoError(t, g.Abort(), "Abort after Publish does nothing")
	again, err := Open(s.Dir(), quiet)
	require.NoError(t, err)
	got, err := again.Warm(tpl, key)
	require.NoError(t, err)
	require.JSONEq(t, `{"a":1}`, string(got.Record))
	got.Record, made.Record = nil, nil
	require.Equal(t, made, got)
	require.Equal(t, "secret", got.ControlToken)
	require.Equal(t, 256, got.MemoryMB)
	require.Equal(t, 1, got.VCPUs)
	require.FileExists(t, filepath.Join(got.Dir, "disk", "0.qcow2"))
	require.NoError(t, again.VerifyWarm(key))
	require.Empty(t, entries(t, s, stageDir))
}

func TestEveryPartOfTheKeyCounts(t *testing.T) {
	t.Parallel()
	base := WarmKey{}
	seen := map[string]bool{base.ID(): true}
	for _, k := range []WarmKey{
		{Image: "x"}, {Kernel: "x"}, {Cmdline: "x"}, {Guest: "x"}, {Boot: "x"}, {Runtime: "x"},
		{Machine: "x"}, {CPU: "x"}, {VCPUs: 1}, {MemoryMB: 1}, {DiskMB: 1},
	} {
		require.False(t, seen[k.ID()], "%+v", k)
		seen[k.ID()] = true
	}
	s := openStore(t)
	tpl := publishSmall(t, s, "base", "kernel", "disk")
	_, err := s.Warm(tpl, WarmKey{Image: "other"})
	require.Equal(t, fault.Invalid, fault.KindOf(err))
}

func TestSecondPublisherGetsTheFirstOnesMemory(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	tpl := publishSmall(t, s, "base", "kernel", "disk")
	key := smallKey(tpl)
	got := make([]Warm, 8)
	var wg sync.WaitGroup
	for i := range got {
		g := stageSmall(t, s, key, fmt.Sprint(i))
		wg.Go(func() {
			var err error
			if got[i], err = g.Publish(Warm{ControlToken: fmt.Sprint(i), Record: json.RawMessage("{}")}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, w := range got {
		require.Equal(t, got[0], w)
	}
	state, err := os.ReadFile(filepath.Join(got[0].Dir, "state"))
	require.NoError(t, err)
	require.Equal(t, got[0].ControlToken+"state", string(state), "the token goes with the memory")
	require.Empty(t, entries(t, s, stageDir))
	require.NoError(t, s.VerifyWarm(key))
}

func TestWarmsListsOneTemplatesMemory(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	one := publishSmall(t, s, "one", "kernel", "disk 1")
	two := publishSmall(t, s, "two", "kernel", "disk 2")
	small, large := smallKey(one), smallKey(one)
	large.MemoryMB = 512
	for _, key := range []WarmKey{small, large, smallKey(two)} {
		_, err := stageSmall(t, s, key, "x").Publish(Warm{Record: json.RawMessage("{}")})
		require.NoError(t, err)
	}
	all, err := s.Warms(one)
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, 256, all[0].MemoryMB)
	require.NoError(t, s.RemoveWarm(small))
	require.NoError(t, s.RemoveWarm(small), "what does not exist is removed")
	_, err = s.Warm(one, small)
	require.Equal(t, fault.NotFound, fault.KindOf(err))
	_, err = s.Warm(one, large)
	require.NoError(t, err)
	require.Empty(t, entries(t, s, stageDir))
}

func TestBadStagesAreNotPublished(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	tpl := publishSmall(t, s, "base", "kernel", "disk")
	empty, err := s.StageWarm(smallKey(tpl))
	require.NoError(t, err)
	_, err = empty.Publish(Warm{})
	require.ErrorContains(t, err, "no file was written")
	link := stageSmall(t, s, smallKey(tpl), "x")
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(link.Dir, "link")))
	_, err = link.Publish(Warm{Record: json.RawMessage("{}")})
	require.ErrorContains(t, err, "not a plain file")
	aborted := stageSmall(t, s, smallKey(tpl), "x")
	require.NoError(t, aborted.Abort())
	require.NoError(t, aborted.Abort())
	require.Empty(t, entries(t, s, warmDir))
	require.Empty(t, entries(t, s, stageDir))
}

func TestDamagedWarmMemoryIsSeen(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	tpl := publishSmall(t, s, "base", "kernel", "disk")
	key := smallKey(tpl)
	w, err := stageSmall(t, s, key, "x").Publish(Warm{Record: json.RawMessage("{}")})
	require.NoError(t, err)
	memory := filepath.Join(w.Dir, "memory")
	require.NoError(t, os.Chmod(memory, 0o600))
	require.NoError(t, os.WriteFile(memory, []byte("ymemory"), 0o600))
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(s.VerifyWarm(key)))
	require.NoError(t, os.Truncate(memory, 0))
	_, err = s.Warm(tpl, key)
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
	all, err := s.Warms(tpl)
	require.NoError(t, err)
	require.Empty(t, all)
}

// crashingStager is the child of the test below: it stages, says so, and waits for its end.
func crashingStager(dir string) {
	s, err := Open(dir, quiet)
	if err != nil {
		panic(err)
	}
	g, err := s.StageWarm(WarmKey{})
	if err != nil {
		panic(err)
	}
	fmt.Println(g.Dir)
	select {}
}

func TestStagesOfDeadProcessesAreRemoved(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	child := exec.CommandContext(t.Context(), exe)
	child.Env = append(os.Environ(), crashEnv+"="+s.Dir())
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	stage := line[:len(line)-1]

	_, err = Open(s.Dir(), quiet)
	require.NoError(t, err)
	require.DirExists(t, stage, "its owner lives")
	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	_, err = Open(s.Dir(), quiet)
	require.NoError(t, err)
	require.NoDirExists(t, stage)
	require.Empty(t, entries(t, s, stageDir))
}

func TestOwnStagesSurviveAnotherOpen(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	g, err := s.StageWarm(WarmKey{})
	require.NoError(t, err)
	_, err = Open(s.Dir(), quiet)
	require.NoError(t, err)
	require.DirExists(t, g.Dir)
	require.NoError(t, g.Abort())
}

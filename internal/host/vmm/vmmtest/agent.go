package vmmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
)

// agentConfig makes the test binary an agent: it holds its job.
const agentConfig = "ROOST_VMMTEST_AGENT"

// job is a VM to boot, or one to adopt and to switch to a drive.
type job struct {
	Boot  vmm.Config
	Adopt *vmm.Handle
	Drive []vmm.Node
}

// Main runs the tests, or is the agent that testAgentDies kills.
func Main(m *testing.M, newDriver func(context.Context) (vmm.Driver, error)) {
	raw, ok := os.LookupEnv(agentConfig)
	if !ok {
		os.Exit(m.Run())
	}
	if err := beAgent(raw, newDriver); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func beAgent(raw string, newDriver func(context.Context) (vmm.Driver, error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	var j job
	if err := json.Unmarshal([]byte(raw), &j); err != nil {
		return err
	}
	d, err := newDriver(ctx)
	if err != nil {
		return err
	}
	if j.Adopt != nil {
		return switchIn(ctx, d, j)
	}
	return bootIn(ctx, d, j.Boot)
}

// bootIn boots the VM, with the files that it was given in the order in which it takes them, tells
// its handle and waits to be killed; its parent's end ends it too.
func bootIn(ctx context.Context, d vmm.Driver, cfg vmm.Config) error {
	next := uintptr(3)
	take := func(name string) *os.File {
		next++
		return os.NewFile(next-1, name)
	}
	if !d.Capabilities().OwnMemory {
		cfg.Memory.File = take("memory")
	}
	if !d.Capabilities().OpensTap {
		cfg.Tap = take("tap")
	}
	vm, err := d.Boot(ctx, cfg)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(vm.Handle()); err != nil {
		return errors.Join(err, vm.Kill(ctx))
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, vm.Kill(ctx))
}

// switchIn adopts the VM and switches its disk, at which a failpoint kills this process.
func switchIn(ctx context.Context, d vmm.Driver, j job) error {
	vm, err := d.Adopt(ctx, *j.Adopt)
	if err != nil {
		return err
	}
	return vm.SwitchDisk(ctx, j.Drive)
}

// testAgentDies: a VM lives on when the agent that started it is killed, and another adopts it.
func (s *suite) testAgentDies(t *testing.T) {
	m := s.newMachine(t)
	agent, h := startAgent(t, m)
	g := m.reach(t)
	g.ask(t, "poke who orphan")
	require.NoError(t, agent.Process.Kill())
	_ = agent.Wait()
	require.Equal(t, "orphan", g.ask(t, "peek who"), "the VM stopped with its agent")

	vm, err := s.driver(t).Adopt(t.Context(), h)
	require.NoError(t, err)
	killAtEnd(t, vm)
	require.NoError(t, vm.Pause(t.Context()))
	saveState(t, vm)
	require.NoError(t, vm.Resume(t.Context()))
	require.Equal(t, "orphan", g.ask(t, "peek who"))
	_, err = vm.Mapping()
	require.NoError(t, err)

	g.tell(t, "poweroff") // the end of a process that is nobody's child here
	select {
	case <-vm.Exited():
	case <-time.After(answerTime):
		require.Fail(t, "the end of an adopted VM was not seen")
	}
	require.Equal(t, "guest shut down", vm.Exit().Reason)
	requireNoSockets(t, m.cfg.Dir)
}

func startAgent(t testing.TB, m *machine) (*exec.Cmd, vmm.Handle) {
	t.Helper()
	cfg := m.cfg
	cfg.Memory.File, cfg.Tap = nil, nil
	raw, err := json.Marshal(job{Boot: cfg})
	require.NoError(t, err)
	agent := exec.Command(os.Args[0])
	agent.Env = append(os.Environ(), agentConfig+"="+string(raw))
	for _, f := range []*os.File{m.cfg.Memory.File, m.cfg.Tap} {
		if f != nil {
			agent.ExtraFiles = append(agent.ExtraFiles, f)
		}
	}
	agent.Stderr = os.Stderr
	in, err := agent.StdinPipe()
	require.NoError(t, err)
	out, err := agent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, agent.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = agent.Wait()
	})
	var h vmm.Handle
	require.NoError(t, json.NewDecoder(out).Decode(&h))
	return agent, h
}

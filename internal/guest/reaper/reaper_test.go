package reaper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestMain lets this binary be the init of a process tree of its own: reaping everybody in
// the test process itself would steal the children of os/exec.
func TestMain(m *testing.M) {
	if os.Getenv("ROOST_TEST_REAPER") != "" {
		if err := actAsInit(); err != nil {
			fmt.Println("FAILED:", err)
			os.Exit(1)
		}
		fmt.Println("all statuses right")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// actAsInit starts many children that leave orphans behind, and checks each status.
func actAsInit() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	r := NewInit(context.Background())
	var wg sync.WaitGroup
	errs := make(chan error, 400)
	for worker := range 8 {
		wg.Go(func() {
			for i := range 50 {
				if err := checkOne(r, (worker*50+i)%200+1); err != nil {
					errs <- err
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	return noZombies()
}

func checkOne(r *Reaper, code int) error {
	script := fmt.Sprintf("(sleep 0.05 &) ; exit %d", code)
	_, ended, err := r.Start(func() (int, error) {
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	})
	if err != nil {
		return err
	}
	select {
	case status := <-ended:
		if status.ExitStatus() != code {
			return fmt.Errorf("exit status %d, want %d", status.ExitStatus(), code)
		}
		return nil
	case <-time.After(20 * time.Second):
		return fmt.Errorf("status of a child lost")
	}
}

func noZombies() error {
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err == unix.ECHILD {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("children are left")
}

func TestInitReapsOrphansAndKeepsStatuses(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ROOST_TEST_REAPER=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "all statuses right")
}

func TestOwnLeavesOtherChildrenAlone(t *testing.T) {
	t.Parallel()
	r := NewOwn()
	for code := range 40 {
		require.NoError(t, checkOne(r, code+1))
		err := exec.Command("/bin/sh", "-c", "exit 7").Run()
		require.ErrorContains(t, err, "exit status 7")
	}
}

func TestSignalRefusesTheReaped(t *testing.T) {
	t.Parallel()
	r := NewOwn()
	pid, ended, err := r.Start(func() (int, error) {
		return syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{})
	})
	require.NoError(t, err)
	<-ended
	require.ErrorIs(t, r.Signal(pid, pid, syscall.SIGTERM), syscall.ESRCH)
}

func TestFailedStartIsReported(t *testing.T) {
	t.Parallel()
	_, _, err := NewOwn().Start(func() (int, error) {
		return syscall.ForkExec("/nonexistent", []string{"x"}, &syscall.ProcAttr{})
	})
	require.True(t, err != nil && strings.Contains(err.Error(), "no such file"))
}

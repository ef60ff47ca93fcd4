package cli_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/cli"
)

// asRoost makes this test binary the roost command: exit codes, signals, terminals and
// streams are then those of a real process.
const asRoost = "ROOST_CLI_TEST_AS_ROOST"

func TestMain(m *testing.M) {
	if mode := os.Getenv(asRoost); mode != "" {
		os.Exit(cli.Main(testOptions(mode), extraCommand()))
	}
	goleak.VerifyTestMain(m)
}

func testOptions(mode string) cli.Options {
	opts := cli.Options{Version: "1.2.3-test"}
	switch mode {
	case "doctor-ok":
		opts.LocalDoctor = localDoctor(v1.Ok)
	case "doctor-fail":
		opts.LocalDoctor = localDoctor(v1.Fail)
	}
	return opts
}

func localDoctor(status v1.CheckStatus) func(context.Context) []v1.Check {
	return func(context.Context) []v1.Check {
		hint := "install it"
		return []v1.Check{{Name: "qemu", Status: status, Detail: "local check", Hint: &hint}}
	}
}

type codedError struct{}

func (codedError) Error() string { return "went wrong" }
func (codedError) ExitCode() int { return 7 }

func extraCommand() *cobra.Command {
	return &cobra.Command{Use: "extra", RunE: func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return codedError{}
		}
		return errors.New("plain failure")
	}}
}

// result is how one run of the command ended.
type result struct {
	stdout, stderr string
	code           int
}

// command prepares a roost process that knows the server.
func (s *server) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	s.settle()
	cmd := bare(t, args...)
	cmd.Env = append(cmd.Env, "ROOST_URL="+s.URL, "ROOST_API_KEY="+testKey)
	return cmd
}

// bare prepares a roost process without credentials, in an empty home.
func bare(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = []string{asRoost + "=1", "HOME=" + home, "ROOST_DATA=" + home + "/data", "PATH=" + os.Getenv("PATH"), "TERM=xterm-test", "GORACE=atexit_sleep_ms=0", "GOCOVERDIR=" + t.TempDir()}
	return cmd
}

// run runs roost to its end, with input (nil: /dev/null).
func (s *server) run(t *testing.T, input io.Reader, args ...string) result {
	t.Helper()
	cmd := s.command(t, args...)
	cmd.Stdin = input
	defer s.settle()
	return finish(t, cmd)
}

// ok runs roost and wants success.
func (s *server) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := s.run(t, nil, args...)
	require.Equal(t, 0, r.code, "stderr: %s", r.stderr)
	return r.stdout
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

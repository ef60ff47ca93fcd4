package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// Options is what the binary tells its command line. The zero value works.
type Options struct {
	// Version is the client's version; empty: the module version of the build.
	Version string
	// LocalDoctor checks this machine; `roost doctor` calls it when no server answers.
	LocalDoctor func(ctx context.Context) []v1.Check
	// TemplateCommands go under `roost template`: those that need this machine, not a server.
	TemplateCommands []*cobra.Command
}

// app is what commands share: options, global flags and the timings that tests shorten.
type app struct {
	opts     Options
	json     bool
	url      string
	key      string
	pollLogs time.Duration
}

// Main runs the command line of this process and returns its exit code.
func Main(opts Options, extra ...*cobra.Command) int {
	return Execute(New(opts, extra...))
}

// New builds the roost command with every client subcommand and the extra ones. An extra
// command's RunE error is printed as cli prints its own; an error with an ExitCode() int
// method chooses the exit code, any other gives 1.
func New(opts Options, extra ...*cobra.Command) *cobra.Command {
	a := &app{opts: opts, pollLogs: time.Second}
	if a.opts.Version == "" {
		a.opts.Version = buildVersion()
	}
	root := a.rootCommand()
	root.AddCommand(
		a.createCommand(), a.lsCommand(), a.infoCommand(), a.execCommand(), a.shellCommand(), a.cpCommand(),
		a.pauseCommand(), a.resumeCommand(), a.forkCommand(), a.rmCommand(), a.timeoutCommand(), a.logsCommand(),
		a.snapshotCommand(), a.templateCommand(), a.keyCommand(), a.doctorCommand(), a.versionCommand(),
	)
	root.AddCommand(extra...)
	markRun(root)
	return root
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "roost",
		Short: "Sandboxes for code nobody trusts",
		Long: `Sandboxes for code nobody trusts.

The server's address and key come from --url and --api-key, else ROOST_URL and ROOST_API_KEY,
else {"url","key"} in $XDG_CONFIG_HOME/roost/client.json (~/.config), else client.json in the
data folder (ROOST_DATA, /var/lib/roost), which ` + "`roost up`" + ` writes.`,
		Example: `  id=$(roost create)
  roost exec $id -- python3 -c 'print(6*7)'
  roost cp ./project $id:/home/user/
  roost shell $id
  roost pause $id && roost resume $id
  roost fork $id -n 8
  roost snapshot create $id --name ready && roost create ready
  roost rm $id`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	flags := root.PersistentFlags()
	flags.BoolVar(&a.json, "json", false, "machine-readable output")
	flags.StringVar(&a.url, "url", "", "address of the server (ROOST_URL)")
	flags.StringVar(&a.key, "api-key", "", "API key (ROOST_API_KEY)")
	return root
}

// Execute runs the command with the process's arguments and returns its exit code. Errors
// that come before a command ran (unknown command, flag, wrong arguments) are usage errors.
func Execute(root *cobra.Command) int {
	cmd, err := root.ExecuteContextC(context.Background())
	if err == nil {
		return 0
	}
	var ran *ranError
	if !errors.As(err, &ran) {
		err = usage(cmd, "%s", err.Error())
	}
	return report(os.Stderr, cmd, err)
}

// ranError marks an error as one that a command returned, as against cobra's own.
type ranError struct{ err error }

func (e *ranError) Error() string { return e.err.Error() }
func (e *ranError) Unwrap() error { return e.err }

func markRun(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := run(cmd, args); err != nil {
				return &ranError{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		markRun(sub)
	}
}

// run makes a RunE of f: with a client, and with a context that a signal ends.
func (a *app) run(f func(ctx context.Context, c *client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		return interruptible(cmd.Context(), func(ctx context.Context) error { return f(ctx, c, args) })
	}
}

// interruptible runs f with a context that a signal ends; f then still tidies up.
func interruptible(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, heeded(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)...)
	defer stop()
	err := f(ctx)
	if err != nil && ctx.Err() != nil {
		return &exitError{code: 130, err: errors.New("interrupted")}
	}
	return err
}

// heeded leaves out the signals that our parent had us ignore (nohup, a background job).
// An empty answer would mean "all signals" to the signal package, so SIGTERM stays.
func heeded(signals ...os.Signal) []os.Signal {
	out := []os.Signal{syscall.SIGTERM}
	for _, s := range signals {
		if s != syscall.SIGTERM && !signal.Ignored(s) {
			out = append(out, s)
		}
	}
	return out
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

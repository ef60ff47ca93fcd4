package cli

import (
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

type execFlags struct {
	interactive, tty bool
	cwd, user        string
	env              pairs
	timeout          string
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec ID [flags] -- CMD...",
		Short: "Run a command in a sandbox",
		Long: `Run a command in a sandbox, with its output as it comes, and exit with its exit code (128+n when
signal n ended it; 125 when Roost itself failed). No shell is involved: use sh -c for one.

Input is passed when stdin is not a terminal, or with -i. Ctrl-C sends SIGINT to the command; a
second one within 2 seconds kills it; SIGTERM, SIGHUP and SIGQUIT are passed on. With --json the
output is JSON lines: {"started":{pid}}, {"stdout"|"stderr"|"terminal": base64}, {"exit":{…}}.`,
		Example: `  roost exec $id -- python3 -c 'print(6*7)'
  roost exec $id --cwd /srv --env MODE=test -- sh -c 'make && ./run'
  tar c src | roost exec $id -- tar x -C /tmp
  roost exec -t $id -- top`,
		Args: takes("ID", "CMD…"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, command, err := splitExec(cmd, args)
		if err != nil {
			return err
		}
		if help, _ := cmd.Flags().GetBool("help"); help {
			return cmd.Help()
		}
		start, err := f.start(command)
		if err != nil {
			return usage(cmd, "%s", err.Error())
		}
		r := &remote{id: id, start: start, in: f.input(), out: plainSink{}}
		if a.json {
			r.out = jsonSink{}
		}
		return a.join(cmd, r)
	}
	// Flags of the remote command are not ours: parsing stops at the first argument.
	cmd.Flags().SetInterspersed(false)
	f.register(cmd)
	return cmd
}

func (f *execFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass input also from a terminal")
	flags.BoolVarP(&f.tty, "tty", "t", false, "run it on a terminal of its own")
	flags.StringVar(&f.cwd, "cwd", "", "folder to run it in")
	flags.StringVar(&f.user, "user", "", "user to run it as")
	flags.Var(&f.env, "env", "environment (repeatable)")
	flags.StringVar(&f.timeout, "timeout", "never", "end it after so long: seconds, 5m, or 0 for never")
}

// splitExec parts the sandbox from the command. Our flags may also stand between the two; the
// command begins at "--" or at the first word that is no flag.
func splitExec(cmd *cobra.Command, args []string) (id string, command []string, err error) {
	id = args[0]
	if err := checkID(id); err != nil {
		return "", nil, usage(cmd, "%s", err.Error())
	}
	if err := cmd.Flags().Parse(args[1:]); err != nil {
		return "", nil, usage(cmd, "%s (put -- before a command)", err.Error())
	}
	command = cmd.Flags().Args()
	if help, _ := cmd.Flags().GetBool("help"); len(command) == 0 && !help {
		return "", nil, usage(cmd, "the command is missing")
	}
	return id, command, nil
}

func (f *execFlags) start(command []string) (v1.ExecStart, error) {
	seconds, err := parseSeconds(f.timeout)
	if err != nil {
		return v1.ExecStart{}, err
	}
	input := f.input() != nil
	start := v1.ExecStart{Cmd: command, Cwd: nonEmpty(f.cwd), User: nonEmpty(f.user), Env: f.env.asMap(), Stdin: &input}
	if seconds > 0 {
		start.TimeoutS = &seconds
	}
	if f.tty {
		size, _ := terminalSize()
		env := terminalEnv(f.env)
		start.Pty, start.Env = &size, env.asMap()
	}
	return start, nil
}

// input is stdin, or nil when the command is to have none.
func (f *execFlags) input() io.Reader {
	if f.interactive || f.tty || !isTerminal(os.Stdin) {
		return os.Stdin
	}
	return nil
}

// join runs a remote command joined to this process. Errors before it runs exit with 125 too.
func (a *app) join(cmd *cobra.Command, r *remote) error {
	c, err := a.connect()
	if err != nil {
		return roostFailed(r.id, err)
	}
	if r.start.Pty != nil {
		restore, err := rawTerminal()
		if err != nil {
			return roostFailed(r.id, err)
		}
		defer restore()
	}
	return r.run(cmd.Context(), c)
}

// roostFailed keeps a usage error's code; anything else is ours: 125.
func roostFailed(id string, err error) error {
	var exit *exitError
	if errors.As(err, &exit) {
		return exit
	}
	return &exitError{code: exitRoost, err: on(id, err)}
}

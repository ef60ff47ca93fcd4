package cli

import (
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// loginShell starts bash where there is one, else sh. exec keeps it the process we started.
const loginShell = `if [ -x /bin/bash ]; then exec /bin/bash -l; else exec /bin/sh -l; fi`

func (a *app) shellCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "shell ID",
		Short: "Open a shell in a sandbox",
		Long: `Open a login shell in a sandbox: bash, or sh where there is no bash. The terminal's size and TERM
are passed; the exit code is the shell's (125 when Roost itself failed).`,
		Example: `  roost shell $id
  roost shell $id --user root --cwd /srv`,
		Args: takes("ID"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkID(args[0]); err != nil {
			return usage(cmd, "%s", err.Error())
		}
		if !isTerminal(os.Stdin) {
			return roostFailed(args[0], fault.New(fault.FailedPrecondition, "", "", "stdin is no terminal").
				WithHint("a shell needs one; run single commands with `roost exec ID -- CMD`"))
		}
		return a.shell(cmd, args[0], f)
	}
	flags := cmd.Flags()
	flags.StringVar(&f.cwd, "cwd", "", "folder to start in")
	flags.StringVar(&f.user, "user", "", "user to be")
	flags.Var(&f.env, "env", "environment (repeatable)")
	return cmd
}

func (a *app) shell(cmd *cobra.Command, id string, f execFlags) error {
	size, _ := terminalSize()
	env := terminalEnv(f.env)
	input := true
	start := v1.ExecStart{
		Cmd: []string{"/bin/sh", "-c", loginShell}, Cwd: nonEmpty(f.cwd), User: nonEmpty(f.user),
		Env: env.asMap(), Stdin: &input, Pty: &size,
	}
	return a.join(cmd, &remote{id: id, start: start, in: os.Stdin, out: plainSink{}})
}

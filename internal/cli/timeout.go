package cli

import (
	"context"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) timeoutCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "timeout ID SECONDS",
		Short: "Set after how long without activity a sandbox pauses",
		Long: `Set after how long without activity a sandbox pauses: seconds, a duration such as 5m, or 0
(or never) for never. Activity is API calls and process output.`,
		Example: `  roost timeout $id 600
  roost timeout $id 2h
  roost timeout $id never`,
		Args: takes("ID", "SECONDS"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		seconds, err := parseSeconds(args[1])
		if err != nil {
			return usage(cmd, "%s", err.Error())
		}
		return a.onSandbox(func(ctx context.Context, c *client, id string) error {
			sandbox, err := answer[v1.Sandbox](c.api.SetSandboxTimeoutWithResponse(ctx, id, v1.Timeout{IdleTimeoutS: seconds}))
			if err != nil {
				return err
			}
			return a.showSandbox(sandbox, printID)
		})(cmd, args)
	}
	return cmd
}

# Starts the client of the WSL distribution at every logon of this user. In PowerShell:
#   .\start-at-logon.ps1 -Distribution Debian -Name pc-3
param(
    [Parameter(Mandatory)] [string] $Distribution,
    [Parameter(Mandatory)] [ValidatePattern('^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$')] [string] $Name
)
$ErrorActionPreference = 'Stop'
# systemd in the distribution keeps the unit running; this keeps the distribution itself running.
$action = New-ScheduledTaskAction -Execute 'wsl.exe' `
    -Argument "--distribution $Distribution --user root -- sh -c `"systemctl start fedclient@$Name && exec sleep infinity`""
$trigger = New-ScheduledTaskTrigger -AtLogOn -User "$env:USERDOMAIN\$env:USERNAME"
$settings = New-ScheduledTaskSettingsSet -ExecutionTimeLimit ([TimeSpan]::Zero) -RestartCount 3 `
    -RestartInterval (New-TimeSpan -Minutes 1) -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries
Register-ScheduledTask -TaskName "Motley $Name" -Action $action -Trigger $trigger -Settings $settings

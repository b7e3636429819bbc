"""Help texts of arguments that several tasks have."""

YES = "Do it without asking."
DATABASE = "The database's name; in a protected environment it must be typed out."
JSON = "Print JSON."
WAIT = "Seconds to wait for another migrator (60)."
SQL = "Print the SQL instead of running it."
